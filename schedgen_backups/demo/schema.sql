-- The tables of the schedule generator that are relevant for a backup.

CREATE TYPE job_status AS ENUM ('pending', 'processing', 'completed', 'failed');
CREATE TYPE pdf_type AS ENUM ('lecture', 'test', 'exam');

CREATE TABLE migrations (
    id serial PRIMARY KEY,
    "timestamp" bigint NOT NULL,
    name varchar NOT NULL
);

CREATE TABLE users (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    email varchar(320) NOT NULL UNIQUE,
    name varchar(200) NOT NULL,
    password_hash varchar(100) NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE jobs (
    id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    user_id uuid NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    status job_status NOT NULL DEFAULT 'pending',
    pdf_type pdf_type NOT NULL,
    s3_key varchar(1024),
    result jsonb,
    error text,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT jobs_failed_have_an_error CHECK (status <> 'failed' OR error IS NOT NULL)
);

CREATE INDEX jobs_user_id_created_at_idx ON jobs (user_id, created_at DESC);
CREATE INDEX jobs_unfinished_idx ON jobs (created_at) WHERE status IN ('pending', 'processing');
CREATE UNIQUE INDEX jobs_s3_key_idx ON jobs (s3_key);
CREATE INDEX jobs_result_idx ON jobs USING gin (result jsonb_path_ops);

CREATE FUNCTION set_updated_at() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.updated_at := now();
    RETURN NEW;
END
$$;

CREATE TRIGGER users_set_updated_at BEFORE UPDATE ON users FOR EACH ROW EXECUTE FUNCTION set_updated_at();
CREATE TRIGGER jobs_set_updated_at BEFORE UPDATE ON jobs FOR EACH ROW EXECUTE FUNCTION set_updated_at();

INSERT INTO migrations ("timestamp", name) VALUES
    (1700000000000, 'InitialSchema1700000000000'),
    (1704000000000, 'AddPdfType1704000000000'),
    (1709000000000, 'AddUnfinishedIndex1709000000000');
