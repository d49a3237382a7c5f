-- What operators allow a tenant on the nodes. Null: no limit of the tenant's own; zero allows nothing.

set lock_timeout = '5s';

alter table tenant
  add column max_concurrency      bigint constraint tenant_max_concurrency check (max_concurrency between 0 and 1000000),
  add column requests_per_minute  bigint constraint tenant_requests_per_minute check (requests_per_minute between 0 and 1000000000),
  add column tokens_per_minute    bigint constraint tenant_tokens_per_minute check (tokens_per_minute between 0 and 1000000000000),
  add column weight               bigint constraint tenant_weight check (weight between 1 and 10000),
  add column adapter_host_bytes   bigint constraint tenant_adapter_host_bytes check (adapter_host_bytes >= 0),
  add column adapter_device_bytes bigint constraint tenant_adapter_device_bytes check (adapter_device_bytes >= 0);

-- An operator changes limits and nothing else, in a transaction that names the tenant, and leaves
-- the audit row with that tenant, who may read it.
grant update (max_concurrency, requests_per_minute, tokens_per_minute, weight, adapter_host_bytes,
  adapter_device_bytes) on tenant to lk_operator;
create policy operator_sets_limits on tenant for update to lk_operator
  using (id = (select app_tenant())) with check (id = (select app_tenant()));
create policy operator_writes_for_tenant on audit for insert to lk_operator
  with check (tenant_id = (select app_tenant()));
grant execute on function manifest_put(integer, text, bytea) to lk_operator;
