-- Adapters that operators have nodes load ahead and keep in memory.

set lock_timeout = '5s';

alter table adapter add column pinned boolean not null default false;

-- Memory on every node is not something a page can grant itself.
revoke insert, update on adapter from lk_app;
grant insert (id, tenant_id, name, created_at), update (name, deleted_at) on adapter to lk_app;
grant update (pinned) on adapter to lk_operator;
create policy operator_pins on adapter for update to lk_operator
  using (tenant_id = (select app_tenant())) with check (tenant_id = (select app_tenant()));
