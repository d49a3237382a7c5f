-- The foundation: accounts, keys, adapters, manifest, usage. Run as lk_owner.
--
-- Rules that hold for every table here:
--   * A tenant-owned table has row-level security with FORCE, and its references to other
--     tenant-owned rows are composite (tenant_id, id): a plain foreign key is checked without RLS
--     and would accept another tenant's row.
--   * `app.tenant` is '' after a transaction that used it, hence nullif.
--   * Time is timestamptz in UTC.

set lock_timeout = '5s';

create function app_tenant() returns uuid language sql stable
  as $$ select nullif(current_setting('app.tenant', true), '')::uuid $$;
create function app_user_id() returns uuid language sql stable
  as $$ select nullif(current_setting('app.user', true), '')::uuid $$;

-- ---------------------------------------------------------------- accounts

create table app_user (
  id            uuid primary key,
  email         text not null check (length(email) between 3 and 254),
  password_hash text not null,
  is_operator   boolean not null default false,
  created_at    timestamptz not null default now(),
  deleted_at    timestamptz
);
create unique index app_user_email_key on app_user (lower(email)) where deleted_at is null;

create table tenant (
  id                 uuid primary key,
  name               text not null constraint tenant_name_length check (length(name) between 1 and 80),
  suspended_at       timestamptz,
  max_adapters       integer not null default 50 check (max_adapters >= 0),
  max_adapter_bytes  bigint not null default 5368709120 check (max_adapter_bytes >= 0),
  max_keys           integer not null default 50 check (max_keys >= 0),
  created_at         timestamptz not null default now(),
  deleted_at         timestamptz
);

create table membership (
  tenant_id  uuid not null references tenant (id),
  user_id    uuid not null references app_user (id),
  role       text not null constraint membership_role check (role in ('owner', 'admin', 'member', 'viewer')),
  created_at timestamptz not null default now(),
  primary key (tenant_id, user_id)
);
create index membership_by_user on membership (user_id);

-- A session belongs to a user (its CSRF token is derived from the session token); `tenant_id` is the tenant chosen in it (null for an operator without one).
create table session (
  id           uuid primary key,
  token_hash   bytea not null constraint session_token_key unique check (length(token_hash) = 32),
  user_id      uuid not null references app_user (id),
  tenant_id    uuid,
  created_at   timestamptz not null default now(),
  last_seen_at timestamptz not null default now(),
  expires_at   timestamptz not null,
  user_agent   text not null default '',
  foreign key (tenant_id, user_id) references membership (tenant_id, user_id) on delete cascade
);
create index session_by_user on session (user_id);

create table login_attempt (
  -- sha256 of the lower-case address or of the client's address: no personal data in clear.
  subject      bytea not null,
  window_start timestamptz not null,
  failures     integer not null,
  primary key (subject, window_start)
);

create table api_key (
  id           uuid primary key,
  tenant_id    uuid not null references tenant (id),
  key_id       text not null constraint api_key_key_id_key unique check (length(key_id) = 8),
  secret_hash  bytea not null check (length(secret_hash) = 32),
  name         text not null constraint api_key_name_length check (length(name) between 1 and 80),
  scopes       text[] not null constraint api_key_scopes check
               (scopes <@ array['inference', 'manage', 'read'] and cardinality(scopes) > 0),
  environment  text not null default 'live' check (environment in ('live')),
  expires_at   timestamptz,
  created_by   uuid references app_user (id),
  created_at   timestamptz not null default now(),
  last_used_at timestamptz,
  revoked_at   timestamptz,
  unique (tenant_id, id)
);

-- ---------------------------------------------------------------- adapters

-- What nodes report of the base model they serve; uploads are verified against the newest.
create table base_model (
  weights_digest bytea primary key check (length(weights_digest) = 32),
  id             text not null,
  spec           jsonb not null,
  first_seen_at  timestamptz not null default now(),
  last_seen_at   timestamptz not null default now()
);

create table adapter (
  id         uuid primary key,
  tenant_id  uuid not null references tenant (id),
  name       text not null constraint adapter_name_form
             check (name ~ '^[a-z0-9][a-z0-9._-]{0,62}$'),
  created_at timestamptz not null default now(),
  deleted_at timestamptz,
  unique (tenant_id, id)
);
create unique index adapter_name_key on adapter (tenant_id, name) where deleted_at is null;

create table adapter_version (
  id                uuid primary key,
  tenant_id         uuid not null,
  adapter_id        uuid not null,
  version           integer not null check (version > 0),
  -- uploading: parts arrive; verifying: the job runs; verified: in the manifest, not yet on every
  -- node; ready: every connected node has acknowledged; failed: `error` says why; deleted.
  state             text not null check (state in ('uploading', 'verifying', 'verified', 'ready', 'failed', 'deleted')),
  error             text,
  error_code        text,
  digest            bytea check (length(digest) = 32),
  base_weights_digest bytea,
  source_bytes      bigint not null default 0 check (source_bytes >= 0),
  rank              integer,
  targets           text[] not null default '{}',
  parameters        bigint,
  manifest_revision bigint,
  created_by        text not null default '',
  created_at        timestamptz not null default now(),
  verified_at       timestamptz,
  ready_at          timestamptz,
  unique (tenant_id, id),
  constraint adapter_version_number_key unique (adapter_id, version),
  foreign key (tenant_id, adapter_id) references adapter (tenant_id, id)
);
create index adapter_version_adapter on adapter_version (tenant_id, adapter_id, version desc);
create index adapter_version_waiting on adapter_version (manifest_revision) where state = 'verified';

-- The packed file that nodes load; a new layout adds rows, it changes none.
create table artifact (
  tenant_id      uuid not null,
  version_id     uuid not null,
  layout_version integer not null,
  object_key     text not null,
  bytes          bigint not null check (bytes > 0),
  digest         bytea not null check (length(digest) = 32),
  created_at     timestamptz not null default now(),
  primary key (version_id, layout_version),
  foreign key (tenant_id, version_id) references adapter_version (tenant_id, id)
);

create table alias (
  id         uuid primary key,
  tenant_id  uuid not null,
  adapter_id uuid not null,
  alias      text not null constraint alias_form check (alias ~ '^[a-z][a-z0-9._-]{0,62}$'),
  version_id uuid not null,
  created_at timestamptz not null default now(),
  updated_at timestamptz not null default now(),
  unique (tenant_id, id),
  constraint alias_key unique (adapter_id, alias),
  foreign key (tenant_id, adapter_id) references adapter (tenant_id, id),
  foreign key (tenant_id, version_id) references adapter_version (tenant_id, id)
);

-- One upload brings the files of one adapter version.
create table upload (
  id           uuid primary key,
  tenant_id    uuid not null,
  version_id   uuid not null,
  state        text not null check (state in ('open', 'completed', 'aborted')),
  -- [{name, bytes, object_key, s3_upload_id, part_bytes, parts}]
  files        jsonb not null,
  created_at   timestamptz not null default now(),
  expires_at   timestamptz not null,
  completed_at timestamptz,
  unique (tenant_id, id),
  foreign key (tenant_id, version_id) references adapter_version (tenant_id, id)
);
create index upload_open on upload (expires_at) where state = 'open';

-- ETags as the client saw them: the embedded S3 lists parts without.
create table upload_part (
  tenant_id   uuid not null,
  upload_id   uuid not null,
  file        text not null,
  part_number integer not null check (part_number between 1 and 10000),
  etag        text not null check (length(etag) between 1 and 200),
  bytes       bigint not null check (bytes > 0),
  received_at timestamptz not null default now(),
  primary key (upload_id, file, part_number),
  foreign key (tenant_id, upload_id) references upload (tenant_id, id)
);

-- ---------------------------------------------------------------- nodes and manifest

create table node (
  id               uuid primary key,
  name             text not null,
  disabled_at      timestamptz,
  cp_epoch         bigint not null default 0,
  acked_revision   bigint not null default 0,
  revocation_seq   bigint not null default 0,
  connected        boolean not null default false,
  -- Which control-plane process holds the stream; a stale one is not believed.
  connection_id    uuid,
  base_model       jsonb,
  api_base_url     text not null default '',
  backend          text not null default '',
  software_version text not null default '',
  residency        jsonb not null default '{}',
  first_seen_at    timestamptz not null default now(),
  last_seen_at     timestamptz not null default now()
);

-- What a node has refused to use, with its reason.
create table node_rejection (
  node_id     uuid not null references node (id) on delete cascade,
  kind        integer not null,
  resource_id text not null,
  reason      text not null,
  revision    bigint not null,
  at          timestamptz not null default now(),
  primary key (node_id, kind, resource_id)
);

-- One row. The revision is drawn inside the changing transaction, so that it follows commit order,
-- which a sequence does not.
create table manifest_counter (
  only_row       boolean primary key default true check (only_row),
  cp_epoch       bigint not null,
  revision       bigint not null,
  revocation_seq bigint not null default 0
);
insert into manifest_counter (cp_epoch, revision)
  values ((extract(epoch from clock_timestamp()) * 1000)::bigint, 0);

-- The last change of each resource; payload null is a tombstone. State and change log in one.
create table manifest_change (
  kind       integer not null,
  id         text not null,
  tenant_id  uuid not null,
  revision   bigint not null,
  payload    bytea,
  changed_at timestamptz not null default now(),
  primary key (kind, id)
);
create index manifest_change_revision on manifest_change (revision);

create table revocation (
  seq        bigint primary key,
  key_id     uuid,
  tenant_id  uuid not null,
  created_at timestamptz not null default now()
);

-- Publishes one resource of the transaction's own tenant. Call it last before commit: it holds the
-- counter's lock. Returns the revision.
create function manifest_put(p_kind integer, p_id text, p_payload bytea) returns bigint
  language plpgsql security definer set search_path = pg_catalog, public as $$
declare v_revision bigint; v_tenant uuid := public.app_tenant();
begin
  if v_tenant is null then raise exception 'manifest_put needs a tenant'; end if;
  update public.manifest_counter set revision = revision + 1 returning revision into v_revision;
  insert into public.manifest_change as c (kind, id, tenant_id, revision, payload)
    values (p_kind, p_id, v_tenant, v_revision, p_payload)
    on conflict (kind, id) do update
      set revision = excluded.revision, payload = excluded.payload, changed_at = now()
      where c.tenant_id = excluded.tenant_id;
  if not found then raise exception 'manifest resource % belongs to another tenant', p_id; end if;
  perform pg_notify('lorikeet_manifest', v_revision::text);
  return v_revision;
end $$;

-- Adds to the deny-set, in the same transaction as the revoked row. A null key revokes the tenant.
create function revoke_now(p_key uuid) returns bigint
  language plpgsql security definer set search_path = pg_catalog, public as $$
declare v_seq bigint; v_tenant uuid := public.app_tenant();
begin
  if v_tenant is null then raise exception 'revoke_now needs a tenant'; end if;
  if p_key is not null and not exists (
    select from public.api_key k where k.id = p_key and k.tenant_id = v_tenant
  ) then raise exception 'key % belongs to another tenant', p_key; end if;
  update public.manifest_counter set revocation_seq = revocation_seq + 1 returning revocation_seq into v_seq;
  insert into public.revocation (seq, key_id, tenant_id) values (v_seq, p_key, v_tenant);
  perform pg_notify('lorikeet_manifest', 'revocation');
  return v_seq;
end $$;

-- ---------------------------------------------------------------- usage

-- Position up to which a log has been ingested; the real guard against counting twice.
create table usage_cursor (
  node_id     uuid not null,
  log_id      uuid not null,
  epoch       bigint not null,
  seq         bigint not null,
  -- Hash chain after `seq`: a cloned log that went its own way does not continue it.
  chain       bytea not null check (length(chain) = 32),
  quarantined_at timestamptz,
  quarantine_reason text,
  updated_at  timestamptz not null default now(),
  primary key (node_id, log_id)
);

create table usage_event (
  node_id            uuid not null,
  log_id             uuid not null,
  epoch              bigint not null,
  seq                bigint not null,
  request_id         uuid not null,
  tenant_id          uuid not null references tenant (id),
  key_id             uuid,
  source             text not null,
  adapter_version_id uuid,
  base_weights_digest bytea,
  prompt_tokens      bigint not null check (prompt_tokens >= 0),
  cached_tokens      bigint not null check (cached_tokens between 0 and prompt_tokens),
  completion_tokens  bigint not null check (completion_tokens >= 0),
  price_book_version integer not null default 0,
  finish_reason      text not null,
  started_at         timestamptz not null,
  first_token_at     timestamptz,
  ended_at           timestamptz not null,
  received_at        timestamptz not null default now(),
  primary key (node_id, log_id, epoch, seq, ended_at),
  foreign key (tenant_id, key_id) references api_key (tenant_id, id),
  foreign key (tenant_id, adapter_version_id) references adapter_version (tenant_id, id)
) partition by range (ended_at);
create table usage_event_default partition of usage_event default;
create index usage_event_tenant_time on usage_event (tenant_id, ended_at);

-- Records that cannot be attributed (an unknown tenant after a database restore, say): kept whole,
-- shown to operators, never dropped.
create table usage_quarantine (
  node_id     uuid not null,
  log_id      uuid not null,
  epoch       bigint not null,
  seq         bigint not null,
  record      bytea not null,
  reason      text not null,
  received_at timestamptz not null default now(),
  primary key (node_id, log_id, epoch, seq)
);

-- Hourly sums, by the hour of `ended_at`. The nil uuid stands for "base model" and "no key".
create table usage_hourly (
  tenant_id          uuid not null references tenant (id),
  hour               timestamptz not null,
  adapter_version_id uuid not null,
  key_id             uuid not null,
  requests           bigint not null,
  prompt_tokens      bigint not null,
  cached_tokens      bigint not null,
  completion_tokens  bigint not null,
  revision           bigint not null default 1,
  primary key (tenant_id, hour, adapter_version_id, key_id)
);
-- For operators, who read all tenants of a period.
create index usage_hourly_hour on usage_hourly (hour);

-- Creates the month's partition unless it is there. The default partition catches the rest.
create function ensure_usage_partition(p_month date) returns void
  language plpgsql security definer set search_path = pg_catalog, public as $$
declare
  v_from date := date_trunc('month', p_month)::date;
  v_name text := 'usage_event_' || to_char(p_month, 'YYYY_MM');
begin
  if to_regclass('public.' || v_name) is not null then return; end if;
  execute format(
    'create table public.%I partition of public.usage_event for values from (%L) to (%L)',
    v_name, v_from || ' 00:00:00+00', (v_from + interval '1 month')::date || ' 00:00:00+00');
  execute format('alter table public.%I enable row level security, force row level security', v_name);
exception
  when duplicate_table then null;
  -- Rows of that month already lie in the default partition: they stay there, correctly readable.
  when check_violation then null;
end $$;

-- ---------------------------------------------------------------- jobs and audit

-- System-owned: payloads hold ids only. A worker opens the tenant's transaction itself.
create table job (
  id           uuid primary key,
  kind         text not null,
  payload      jsonb not null,
  tenant_id    uuid,
  run_at       timestamptz not null default now(),
  attempts     integer not null default 0,
  max_attempts integer not null default 10,
  locked_until timestamptz,
  last_error   text,
  created_at   timestamptz not null default now(),
  finished_at  timestamptz,
  failed_at    timestamptz
);
create index job_due on job (run_at) where finished_at is null and failed_at is null;

create table audit (
  id         uuid primary key,
  -- null: an operator looked across tenants
  tenant_id  uuid references tenant (id),
  -- user usr_..., key key_..., node node_..., system
  actor      text not null,
  action     text not null,
  subject    text not null,
  detail     jsonb not null default '{}',
  request_id text,
  at         timestamptz not null default now()
);
create index audit_tenant_time on audit (tenant_id, at desc);

-- ---------------------------------------------------------------- look-ups that precede the tenant

create function auth_user_by_email(p_email text)
  returns table (id uuid, email text, password_hash text, is_operator boolean)
  language sql stable security definer set search_path = pg_catalog, public as $$
  select u.id, u.email, u.password_hash, u.is_operator from public.app_user u
  where lower(u.email) = lower(p_email) and u.deleted_at is null
$$;

create function auth_session(p_token_hash bytea)
  returns table (session_id uuid, user_id uuid, email text, is_operator boolean, tenant_id uuid,
                 tenant_name text, role text, suspended_at timestamptz, created_at timestamptz,
                 last_seen_at timestamptz)
  language sql stable security definer set search_path = pg_catalog, public as $$
  select s.id, u.id, u.email, u.is_operator, t.id, t.name, m.role, t.suspended_at, s.created_at,
         s.last_seen_at
  from public.session s
  join public.app_user u on u.id = s.user_id and u.deleted_at is null
  left join public.tenant t on t.id = s.tenant_id and t.deleted_at is null
  left join public.membership m on m.tenant_id = s.tenant_id and m.user_id = s.user_id
  where s.token_hash = p_token_hash and s.expires_at > now()
    and s.last_seen_at > now() - interval '3 days'
$$;

-- Forgets what has run out: sessions past their life or long unused, old login counters.
create function auth_sweep() returns void
  language sql security definer set search_path = pg_catalog, public as $$
  delete from public.session where expires_at < now() or last_seen_at < now() - interval '3 days';
  delete from public.login_attempt where window_start < now() - interval '1 day';
$$;

create function auth_key(p_key_id text)
  returns table (id uuid, tenant_id uuid, tenant_name text, secret_hash bytea, scopes text[],
                 expires_at timestamptz, revoked_at timestamptz, suspended_at timestamptz)
  language sql stable security definer set search_path = pg_catalog, public as $$
  select k.id, k.tenant_id, t.name, k.secret_hash, k.scopes, k.expires_at, k.revoked_at, t.suspended_at
  from public.api_key k join public.tenant t on t.id = k.tenant_id and t.deleted_at is null
  where k.key_id = p_key_id
$$;

create function auth_memberships(p_user uuid)
  returns table (tenant_id uuid, tenant_name text, role text, suspended boolean)
  language sql stable security definer set search_path = pg_catalog, public as $$
  select t.id, t.name, m.role, t.suspended_at is not null from public.membership m
  join public.tenant t on t.id = m.tenant_id and t.deleted_at is null
  where m.user_id = p_user order by m.created_at
$$;

-- ---------------------------------------------------------------- row-level security

do $$
declare t text;
begin
  foreach t in array array['membership', 'api_key', 'adapter', 'adapter_version', 'artifact', 'alias',
                           'upload', 'upload_part', 'usage_event', 'usage_event_default',
                           'usage_hourly', 'audit', 'revocation'] loop
    execute format('alter table %I enable row level security, force row level security', t);
    execute format('create policy tenant_rows on %I to lk_app using (tenant_id = (select app_tenant()))
                    with check (tenant_id = (select app_tenant()))', t);
    execute format('create policy operator_reads on %I for select to lk_operator using (true)', t);
    -- Functions above run as the owner, which FORCE binds too.
    execute format('create policy owner_rows on %I to lk_owner using (true) with check (true)', t);
  end loop;
end $$;

-- Each look across tenants leaves a row that belongs to none.
create policy operator_writes on audit for insert to lk_operator with check (tenant_id is null);

alter table tenant enable row level security, force row level security;
create policy tenant_rows on tenant to lk_app using (id = (select app_tenant())) with check (id = (select app_tenant()));
create policy operator_reads on tenant for select to lk_operator using (true);
create policy owner_rows on tenant to lk_owner using (true) with check (true);
create policy ingest_reads on tenant for select to lk_ingest using (true);

alter table app_user enable row level security, force row level security;
create policy own_row on app_user to lk_app using (id = (select app_user_id())) with check (id = (select app_user_id()));
create policy operator_reads on app_user for select to lk_operator using (true);
create policy owner_rows on app_user to lk_owner using (true) with check (true);

alter table session enable row level security, force row level security;
create policy own_rows on session to lk_app using (user_id = (select app_user_id())) with check (user_id = (select app_user_id()));
create policy owner_rows on session to lk_owner using (true) with check (true);

-- The nodes' side writes usage of every tenant and moves versions from verified to ready.
create policy ingest_rows on usage_event to lk_ingest using (true) with check (true);
create policy ingest_rows on usage_event_default to lk_ingest using (true) with check (true);
create policy ingest_rows on usage_hourly to lk_ingest using (true) with check (true);
create policy ingest_rows on adapter_version to lk_ingest using (true) with check (true);
create policy ingest_reads on api_key for select to lk_ingest using (true);
create policy ingest_marks_use on api_key for update to lk_ingest using (true) with check (true);
create policy ingest_reads on revocation for select to lk_ingest using (true);
create policy ingest_writes on audit for insert to lk_ingest with check (true);

-- ---------------------------------------------------------------- grants

grant usage on schema public to lk_app, lk_ingest, lk_operator;

grant select, insert, update on app_user, api_key, adapter, adapter_version, upload, alias to lk_app;
grant select, insert, update, delete on membership, session, upload_part, login_attempt to lk_app;
grant select, insert on artifact, audit to lk_app;
grant delete on alias to lk_app;
grant select on usage_hourly to lk_app;
grant select on usage_event to lk_app;
grant select, insert, update on job to lk_app;
grant select on base_model to lk_app;
grant select (id, name, connected, acked_revision, revocation_seq, api_base_url, backend, last_seen_at, disabled_at)
  on node to lk_app;
grant select on node_rejection, revocation to lk_app;
grant select on manifest_counter to lk_app;
-- Being an operator, a quota or the end of a suspension is not something a page can grant.
revoke insert, update on app_user from lk_app;
grant select, insert (id, name), update (name, deleted_at) on tenant to lk_app;
grant insert (id, email, password_hash, created_at), update (email, password_hash, deleted_at) on app_user to lk_app;

grant select, insert, update on node, usage_cursor, usage_quarantine, base_model, usage_hourly to lk_ingest;
grant select, insert, update, delete on node_rejection to lk_ingest;
grant select, insert on usage_event to lk_ingest;
grant insert on audit to lk_ingest;
grant select on manifest_counter, manifest_change, revocation, tenant to lk_ingest;
grant select (id, tenant_id, revoked_at, last_used_at), update (last_used_at) on api_key to lk_ingest;
grant select, update (state, ready_at, error, error_code) on adapter_version to lk_ingest;

grant select on tenant, membership, adapter, adapter_version, artifact, alias, upload, usage_event,
  usage_hourly, audit, node, node_rejection, usage_cursor, usage_quarantine, base_model, job,
  manifest_counter, revocation to lk_operator;
grant select (id, email, is_operator, created_at, deleted_at) on app_user to lk_operator;
grant insert on audit to lk_operator;
grant select (id, tenant_id, key_id, name, scopes, environment, expires_at, created_at, last_used_at, revoked_at)
  on api_key to lk_operator;

revoke execute on all functions in schema public from public;
grant execute on function app_tenant(), app_user_id() to lk_app, lk_ingest, lk_operator;
grant execute on function manifest_put(integer, text, bytea), revoke_now(uuid),
  auth_user_by_email(text), auth_session(bytea), auth_key(text), auth_memberships(uuid), auth_sweep() to lk_app;
grant execute on function ensure_usage_partition(date) to lk_ingest;
