#!/bin/sh
# Run once by the postgres image, on an empty volume: the four roles with a password, since here
# they log in over a network. `lorikeet migrate` finds them there, and makes the rest.
set -eu
for role in lk_owner lk_app lk_ingest lk_operator; do
  psql --username "$POSTGRES_USER" -v ON_ERROR_STOP=1 -v role="$role" -v password="$LORIKEET_DB_PASSWORD" <<'SQL'
create role :"role" login nosuperuser nocreatedb nocreaterole nobypassrls password :'password';
SQL
done
