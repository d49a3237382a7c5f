-- The four roles, cluster-wide, created once by an administrator (`lorikeet migrate --admin-url`).
-- None is a superuser, none has BYPASSRLS: row-level security holds for every one of them.
--   lk_owner     owns the schema and runs migrations; never used by a server
--   lk_app       pages and API, one tenant a transaction
--   lk_ingest    the nodes' side: manifest, acknowledgements, usage
--   lk_operator  operators' pages: reads across tenants, by policy
-- Idempotent; two administrators at once are harmless.
do $$
declare role_name text;
begin
  foreach role_name in array array['lk_owner', 'lk_app', 'lk_ingest', 'lk_operator'] loop
    begin
      execute format('create role %I login nosuperuser nocreatedb nocreaterole nobypassrls', role_name);
    exception when duplicate_object or unique_violation then null;
    end;
  end loop;
end $$;
