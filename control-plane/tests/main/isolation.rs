//! One tenant's rows are out of another's reach in every tenant-owned table, for the role that
//! serves requests. Tables come from the catalogue: a new one is tested from its first migration.

use crate::support::{TestApp, config, connect};
use lorikeet_control_plane::db::Db;
use sqlx::postgres::PgQueryResult;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

/// Has a `tenant_id` and is the system's: payloads hold ids only, and workers take rows of all.
const SYSTEM_OWNED: [&str; 1] = ["job"];

/// What `lk_app` may reach at all of the tables with a `tenant_id`.
async fn tenant_tables(owner: &mut PgConnection) -> Vec<String> {
    let tables: Vec<(String, bool, bool)> = sqlx::query_as(
        "select c.relname::text, c.relrowsecurity and c.relforcerowsecurity,
                has_any_column_privilege('lk_app', c.oid, 'select, insert, update')
                  or has_table_privilege('lk_app', c.oid, 'select, insert, update, delete')
         from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attname = 'tenant_id'
         where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p')
         order by 1",
    )
    .fetch_all(owner)
    .await
    .unwrap();
    let mut reachable = Vec::new();
    for (table, forced, granted) in tables {
        if !granted || SYSTEM_OWNED.contains(&&*table) {
            continue;
        }
        assert!(forced, "{table} has a tenant_id but no FORCE ROW LEVEL SECURITY");
        reachable.push(table);
    }
    reachable
}

/// One row of a tenant in each table.
async fn seed(owner: &mut PgConnection, tenant: Uuid, user: Uuid) {
    let name = tenant.simple().to_string();
    let ids = Uuid::now_v7();
    let hash = ids.as_bytes().repeat(2);
    for statement in [
        "insert into app_user (id, email, password_hash) values ($2, $4 || '@example.com', '')",
        "insert into tenant (id, name) values ($1, $4)",
        "insert into membership (tenant_id, user_id, role) values ($1, $2, 'owner')",
        "insert into session (id, token_hash, user_id, tenant_id, expires_at)
           values ($3, $5, $2, $1, now() + interval '1 day')",
        "insert into api_key (id, tenant_id, key_id, secret_hash, name, scopes)
           values ($3, $1, right($4, 8), $5, 'key', '{read}')",
        "insert into revocation (seq, key_id, tenant_id)
           values ((select count(*) + 1 from revocation), $3, $1)",
        "insert into adapter (id, tenant_id, name) values ($3, $1, 'pirate')",
        "insert into adapter_version (id, tenant_id, adapter_id, version, state)
           values ($3, $1, $3, 1, 'ready')",
        "insert into artifact (tenant_id, version_id, layout_version, object_key, bytes, digest)
           values ($1, $3, 1, 'key', 1, $5)",
        "insert into alias (id, tenant_id, adapter_id, alias, version_id)
           values ($3, $1, $3, 'prod', $3)",
        "insert into upload (id, tenant_id, version_id, state, files, expires_at)
           values ($3, $1, $3, 'open', '[]', now())",
        "insert into upload_part (tenant_id, upload_id, file, part_number, etag, bytes)
           values ($1, $3, 'f', 1, 'e', 1)",
        "insert into usage_event (node_id, log_id, epoch, seq, request_id, tenant_id, source,
             prompt_tokens, cached_tokens, completion_tokens, finish_reason, started_at, ended_at)
           values ($3, $3, 1, 1, $3, $1, 'api', 1, 0, 1, 'stop', now(), now())",
        "insert into usage_hourly values ($1, now(), $3, $3, 1, 1, 1, 1)",
        "insert into audit (id, tenant_id, actor, action, subject)
           values ($3, $1, 'system', 'test', '')",
    ] {
        let used = format!(
            "with given as (select $1::uuid, $2::uuid, $3::uuid, $4::text, $5::bytea) {statement}"
        );
        sqlx::query(AssertSqlSafe(used))
            .bind(tenant)
            .bind(user)
            .bind(ids)
            .bind(&name)
            .bind(&hash)
            .execute(&mut *owner)
            .await
            .unwrap_or_else(|e| panic!("{statement}: {e}"));
    }
}

/// As a request of tenant `tenant` would connect. Panics where isolation would hold vacuously.
async fn act_as(role: &str, database: &str, tenant: Uuid, user: Uuid) -> PgConnection {
    let mut conn = connect(role, database).await;
    let bypasses: bool = sqlx::query_scalar(
        "select rolsuper or rolbypassrls from pg_roles where rolname = current_user",
    )
    .fetch_one(&mut conn)
    .await
    .unwrap();
    assert!(!bypasses, "{role} bypasses row-level security: this test would prove nothing");
    sqlx::query("select set_config('app.tenant', $1, false), set_config('app.user', $2, false)")
        .bind(tenant.to_string())
        .bind(user.to_string())
        .execute(&mut conn)
        .await
        .unwrap();
    conn
}

async fn count(conn: &mut PgConnection, table: &str, tenant: Uuid) -> i64 {
    let query = format!("select count(*) from {table} where tenant_id = $1");
    sqlx::query_scalar(AssertSqlSafe(query)).bind(tenant).fetch_one(conn).await.unwrap()
}

async fn execute(
    conn: &mut PgConnection,
    statement: String,
    tenant: Uuid,
) -> Result<PgQueryResult, String> {
    // A savepoint, so that a refusal does not end the transaction.
    let mut tx = conn.begin().await.unwrap();
    let result = sqlx::query(AssertSqlSafe(statement)).bind(tenant).execute(&mut *tx).await;
    let code = |e: sqlx::Error| e.as_database_error().unwrap().code().unwrap().into_owned();
    result.map_err(code)
}

const DENIED: &str = "42501";
const FOREIGN_KEY: &str = "23503";

#[tokio::test]
async fn a_tenant_reaches_its_own_rows_and_no_others_in_every_table() {
    let app = TestApp::start().await;
    let mut owner = app.owner().await;
    let (own, other) = (Uuid::now_v7(), Uuid::now_v7());
    let (own_user, other_user) = (Uuid::now_v7(), Uuid::now_v7());
    seed(&mut owner, own, own_user).await;
    seed(&mut owner, other, other_user).await;
    let tables = tenant_tables(&mut owner).await;
    assert!(tables.len() >= 12, "{tables:?}");

    let mut conn = act_as("lk_app", &app.database, own, own_user).await;
    for table in tables {
        assert!(count(&mut owner, &table, other).await > 0, "seed() has no row for {table}");
        assert!(count(&mut conn, &table, own).await > 0, "{table}: own rows are invisible");
        assert_eq!(count(&mut conn, &table, other).await, 0, "{table}: other rows are visible");

        for statement in [
            format!("update {table} set tenant_id = tenant_id where tenant_id = $1"),
            format!("delete from {table} where tenant_id = $1"),
        ] {
            match execute(&mut conn, statement.clone(), other).await {
                Ok(done) => assert_eq!(done.rows_affected(), 0, "{statement}"),
                Err(code) => assert_eq!(code, DENIED, "{statement}"),
            }
        }
        // Moving an own row to the other tenant, and inserting what the other has.
        let moved = format!("update {table} set tenant_id = $1");
        let code = execute(&mut conn, moved.clone(), other).await.expect_err(&moved);
        assert!([DENIED, FOREIGN_KEY].contains(&&*code), "{moved}: {code}");
        let row: serde_json::Value = sqlx::query_scalar(AssertSqlSafe(format!(
            "select to_jsonb(t) from {table} t where tenant_id = $1"
        )))
        .bind(other)
        .fetch_one(&mut owner)
        .await
        .unwrap();
        let inserted = sqlx::query(AssertSqlSafe(format!(
            "insert into {table} select * from jsonb_populate_record(null::{table}, $1)"
        )))
        .bind(row)
        .execute(&mut conn)
        .await
        .expect_err("another tenant's row was inserted");
        assert_eq!(
            inserted.as_database_error().unwrap().code().as_deref(),
            Some(DENIED),
            "{table}"
        );
    }

    let tenants: Vec<Uuid> =
        sqlx::query_scalar("select id from tenant").fetch_all(&mut conn).await.unwrap();
    assert_eq!(tenants, [own]);
    let users: Vec<Uuid> =
        sqlx::query_scalar("select id from app_user").fetch_all(&mut conn).await.unwrap();
    assert_eq!(users, [own_user]);
}

#[tokio::test]
async fn without_a_tenant_no_tenant_owned_row_is_visible() {
    let app = TestApp::start().await;
    let mut owner = app.owner().await;
    let (tenant, user) = (Uuid::now_v7(), Uuid::now_v7());
    seed(&mut owner, tenant, user).await;
    let mut conn = connect("lk_app", &app.database).await;
    for table in tenant_tables(&mut owner).await {
        assert_eq!(count(&mut conn, &table, tenant).await, 0, "{table}");
    }
}

/// Row-level security does not apply to the check of a foreign key: only a composite one keeps a
/// row from naming another tenant's.
#[tokio::test]
async fn every_reference_between_tenant_owned_tables_includes_the_tenant() {
    let app = TestApp::start().await;
    let plain: Vec<String> = sqlx::query_scalar(
        "select format('%s.%s', conrelid::regclass, conname) from pg_constraint k
         where contype = 'f' and connamespace = 'public'::regnamespace
           and exists (select from pg_attribute where attrelid = conrelid and attname = 'tenant_id')
           and exists (select from pg_attribute where attrelid = confrelid and attname = 'tenant_id')
           and not exists (
             select from unnest(conkey, confkey) as pair (here, there)
             join pg_attribute h on h.attrelid = conrelid and h.attnum = here
             join pg_attribute t on t.attrelid = confrelid and t.attnum = there
             where h.attname = 'tenant_id' and t.attname = 'tenant_id')",
    )
    .fetch_all(&mut app.owner().await)
    .await
    .unwrap();
    assert_eq!(plain, Vec::<String>::new());
}

#[tokio::test]
async fn a_row_cannot_refer_to_another_tenants_row() {
    let app = TestApp::start().await;
    let mut owner = app.owner().await;
    let (own, other) = (Uuid::now_v7(), Uuid::now_v7());
    let own_user = Uuid::now_v7();
    seed(&mut owner, own, own_user).await;
    seed(&mut owner, other, Uuid::now_v7()).await;
    let theirs: Uuid = sqlx::query_scalar("select id from adapter where tenant_id = $1")
        .bind(other)
        .fetch_one(&mut owner)
        .await
        .unwrap();
    let mut conn = act_as("lk_app", &app.database, own, own_user).await;
    let statement = format!(
        "insert into adapter_version (id, tenant_id, adapter_id, version, state)
         values (gen_random_uuid(), $1, '{theirs}', 2, 'ready')"
    );
    assert_eq!(execute(&mut conn, statement, own).await.unwrap_err(), FOREIGN_KEY);
}

#[tokio::test]
async fn an_operator_reads_across_tenants_and_changes_nothing_but_one_named_tenants_limits() {
    let app = TestApp::start().await;
    let mut owner = app.owner().await;
    for _ in 0..2 {
        seed(&mut owner, Uuid::now_v7(), Uuid::now_v7()).await;
    }
    let mut conn = connect("lk_operator", &app.database).await;
    let tenants: i64 =
        sqlx::query_scalar("select count(*) from tenant").fetch_one(&mut conn).await.unwrap();
    assert_eq!(tenants, 2);
    for table in ["tenant", "adapter", "api_key", "usage_hourly", "audit"] {
        let statement = format!("update {table} set tenant_id = $1");
        let statement =
            if table == "tenant" { "update tenant set id = $1".into() } else { statement };
        assert_eq!(execute(&mut conn, statement, Uuid::nil()).await.unwrap_err(), DENIED);
    }
    let forged = "insert into audit (id, tenant_id, actor, action, subject)
                  values (gen_random_uuid(), $1, 'system', 'forged', '')";
    let some: Uuid =
        sqlx::query_scalar("select id from tenant limit 1").fetch_one(&mut conn).await.unwrap();
    assert_eq!(execute(&mut conn, forged.to_owned(), some).await.unwrap_err(), DENIED);

    let limited = "update tenant set weight = 7 where id <> $1";
    let done = execute(&mut conn, limited.to_owned(), Uuid::nil()).await.unwrap();
    assert_eq!(done.rows_affected(), 0, "without naming a tenant none is changed");
    let mut conn = act_as("lk_operator", &app.database, some, Uuid::nil()).await;
    let done = execute(&mut conn, limited.to_owned(), Uuid::nil()).await.unwrap();
    assert_eq!(done.rows_affected(), 1);
    for statement in
        ["update tenant set suspended_at = now() where id = $1", "delete from tenant where id = $1"]
    {
        assert_eq!(execute(&mut conn, statement.to_owned(), some).await.unwrap_err(), DENIED);
    }
}

#[tokio::test]
async fn a_page_cannot_make_operators_or_raise_quotas() {
    let app = TestApp::start().await;
    let mut owner = app.owner().await;
    let (tenant, user) = (Uuid::now_v7(), Uuid::now_v7());
    seed(&mut owner, tenant, user).await;
    let mut conn = act_as("lk_app", &app.database, tenant, user).await;
    for statement in [
        "update app_user set is_operator = true where $1 = $1",
        "update tenant set max_keys = 1000 where id = $1",
        "update tenant set tokens_per_minute = null where id = $1",
        "update tenant set suspended_at = null where id = $1",
    ] {
        assert_eq!(execute(&mut conn, statement.to_owned(), tenant).await.unwrap_err(), DENIED);
    }
}

#[tokio::test]
#[should_panic(expected = "bypasses row-level security")]
async fn the_isolation_tests_fail_loudly_as_a_superuser() {
    let app = TestApp::start().await;
    act_as("postgres", &app.database, Uuid::nil(), Uuid::nil()).await;
}

#[tokio::test]
async fn pools_that_could_bypass_row_level_security_are_refused() {
    let app = TestApp::start().await;
    for user in ["postgres", "lk_owner"] {
        let mut config = config(&app.database, &[]).database;
        config.operator = config.operator.username(user);
        let error = Db::connect(&config).await.err().expect("refused").to_string();
        assert!(error.starts_with(user) && error.contains("bypass row-level security"), "{error}");
    }
}
