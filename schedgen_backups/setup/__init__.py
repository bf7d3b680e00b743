"""The guided installation: questions, the plan of what will change, and carrying it out.

Add a question or a kind of deployment here. It writes only what the plan shows. Nothing imports this package.
"""
