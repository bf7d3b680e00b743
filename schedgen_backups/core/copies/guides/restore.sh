#!/bin/sh
# Makes the files of one copied recovery point again, with age, gunzip, dd and sha256sum only.
# Usage: sh restore.sh ID KEYFILE DIRECTORY, in the folder of the site: the one that holds packs/ and points/.
# KEYFILE is a private key of age or ssh; it is not used for a store that is not encrypted.
set -eu
umask 077
in_packs=no
test $# -eq 3 || { echo "usage: sh restore.sh ID KEYFILE DIRECTORY" >&2; exit 2; }
id=$1 key=$2 directory=$3
test -f "points/$id/committed.json" || { echo "points/$id holds no committed copy" >&2; exit 1; }
# Without this, a missing file would only be missed by somebody who knows what a point consists of.
value() { grep -o "\"$1\": *\"[^\"]*\"" "points/$id/$2" | cut -d '"' -f 4; }
test "$(sha256sum < "points/$id/packs.json")" = "$(value packs_sha256 committed.json)  -" \
  || { echo "points/$id/packs.json is not the one that was committed" >&2; exit 1; }
value name packs.json | while IFS= read -r name; do
  test -f "points/$id/$name" || test -f "packs/$name" || { echo "$name is missing" >&2; exit 1; }
done
mkdir -p "$directory" "$directory/.packs"
decrypt() { case $1 in *.age) age -d -i "$key" "$1" ;; *) cat "$1" ;; esac; }
for stored in "points/$id"/*.recipe.gz "points/$id"/*.recipe.gz.age; do
  test -f "$stored" || continue
  name=${stored##*/} name=${name%.age} name=${name%.recipe.gz}
  decrypt "$stored" | gunzip > "$directory/.recipe"
  # Whoever can write to the store can have written this file: nothing but packs may be named.
  if grep -Ev '^# (sha256|bytes) [0-9a-f]*$' "$directory/.recipe" \
    | grep -Evq '^[0-9]{8}_[0-9]{6}-[0-9]+(\.age)? [0-9]+ [0-9]+$'; then
    echo "$stored is not a recipe" >&2
    exit 1
  fi
  grep -v '^#' "$directory/.recipe" | cut -d ' ' -f 1 | sort -u | while read -r pack; do
    test -f "$directory/.packs/$pack" || decrypt "packs/$pack" > "$directory/.packs/$pack.part"
    test -f "$directory/.packs/$pack" || mv "$directory/.packs/$pack.part" "$directory/.packs/$pack"
  done
  grep -v '^#' "$directory/.recipe" | while read -r pack offset length; do
    dd if="$directory/.packs/$pack" iflag=skip_bytes,count_bytes skip="$offset" count="$length" bs=1M status=none
  done > "$directory/$name"
  if grep -q '^# sha256 ' "$directory/.recipe"; then
    echo "$(sed -n 's/^# sha256 //p' "$directory/.recipe")  $directory/$name" | sha256sum -c -
    continue
  fi
  # It was in packs at home, too: nobody ever digested it whole, but each of these packs.
  test "$(($(wc -c < "$directory/$name")))" = "$(sed -n 's/^# bytes //p' "$directory/.recipe")" \
    || { echo "$directory/$name has the wrong size" >&2; exit 1; }
  (cd "$directory/.packs" && sha256sum -- *) > "$directory/.digests"
  local=points/$id/$name.local-recipe.gz
  test -f "$local" || local=$local.age
  test -f "$local" || { echo "$local is missing" >&2; exit 1; }
  # Of a pack that was encrypted at home, the digest of what it holds is behind that of its own bytes.
  decrypt "$local" | gunzip | sed -n -e 's/^# pack [^ ]*\.age [^ ]* [^ ]* [^ ]* \([^ ]*\) .*/\1/p' \
    -e 's/^# pack .* //p' > "$directory/.stated"
  test -s "$directory/.stated" || { echo "$local is not a recipe" >&2; exit 1; }
  while read -r digest; do
    grep -q "^$digest " "$directory/.digests" || { echo "a pack of $name was altered" >&2; exit 1; }
  done < "$directory/.stated"
  echo "$directory/$name: OK (every pack)"
  in_packs=yes
done
for stored in "points/$id"/manifest.json* "points/$id"/verification.json*; do
  # Of a point in packs, they describe the recipes that were at home instead of these files.
  test "$in_packs" = no || continue
  name=${stored##*/} name=${name%.age}
  decrypt "$stored" > "$directory/${name%.json}_$id.json"
done
rm -rf "$directory/.packs" "$directory/.recipe" "$directory/.digests" "$directory/.stated"
