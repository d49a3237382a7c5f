//! Migrations run as a command of their own, as `lk_owner`; servers only check the version.

use super::Db;
use anyhow::{Context, bail};
use sqlx::migrate::{Migrate, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

static MIGRATIONS: Migrator = sqlx::migrate!("../migrations");
const ROLES: &str = include_str!("../../../migrations/roles.sql");

/// Brings the database that `url` names up to this build's version. An administrator's login also
/// creates the roles and the database where they are missing; `lk_owner`'s own login suffices
/// afterwards. Safe to repeat, and to run twice at once.
pub async fn migrate(url: &PgConnectOptions) -> anyhow::Result<()> {
    let database = url.get_database().unwrap_or("lorikeet").to_owned();
    if url.get_username() != "lk_owner" {
        prepare_cluster(url, &database).await?;
    }
    let mut owner = owner_connection(&url.clone().database(&database)).await?;
    MIGRATIONS.run(&mut owner).await.context("a migration failed; nothing of it was kept")?;
    sqlx::raw_sql("grant select on _sqlx_migrations to lk_app, lk_ingest, lk_operator")
        .execute(&mut owner)
        .await?;
    owner.close().await?;
    Ok(())
}

/// Connects and acts as `lk_owner`, which an administrator may become and `lk_owner` is already.
pub async fn owner_connection(url: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    url.clone()
        .application_name("lorikeet-migrate")
        .options([("role", "lk_owner"), ("lock_timeout", "5s")])
        .connect()
        .await
        .context("cannot connect as lk_owner; give an administrator's address the first time")
}

async fn prepare_cluster(admin: &PgConnectOptions, database: &str) -> anyhow::Result<()> {
    let mut conn = admin.clone().database("postgres").connect().await.with_context(|| {
        format!("cannot connect to PostgreSQL at {} as {}", admin.get_host(), admin.get_username())
    })?;
    sqlx::raw_sql(ROLES).execute(&mut conn).await.context(
        "cannot create the roles: run once as an administrator (superuser or CREATEROLE)",
    )?;
    let exists: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(database)
            .fetch_one(&mut conn)
            .await?;
    if !exists {
        let create = format!("create database {} owner lk_owner", quoted(database));
        // Two at once: the loser finds it there.
        if let Err(error) = sqlx::raw_sql(AssertSqlSafe(create)).execute(&mut conn).await
            && !is_duplicate_database(&error)
        {
            return Err(error).with_context(|| format!("cannot create the database {database}"));
        }
    }
    conn.close().await?;
    Ok(())
}

fn quoted(identifier: &str) -> String {
    format!("\"{}\"", identifier.replace('"', "\"\""))
}

fn is_duplicate_database(error: &sqlx::Error) -> bool {
    // 42P04 duplicate_database; 23505 when both got as far as the catalogue.
    let code = error.as_database_error().and_then(|e| e.code());
    matches!(code.as_deref(), Some("42P04" | "23505"))
}

/// Refuses to serve on a schema that this build does not know.
pub async fn check_version(db: &Db) -> anyhow::Result<()> {
    const ADVICE: &str = "run `lorikeet migrate` first";
    let mut conn = db.app.untenanted().acquire().await?;
    let migrated: bool = sqlx::query_scalar("select to_regclass('_sqlx_migrations') is not null")
        .fetch_one(&mut *conn)
        .await?;
    if !migrated {
        bail!("the database has no schema yet: {ADVICE}");
    }
    let applied = conn.list_applied_migrations("_sqlx_migrations").await?;
    let applied: Vec<i64> = applied.into_iter().map(|m| m.version).collect();
    for migration in MIGRATIONS.iter() {
        if !applied.contains(&migration.version) {
            bail!("the database lacks migration {}: {ADVICE}", migration.version);
        }
    }
    if let Some(newer) = applied.iter().find(|v| !MIGRATIONS.version_exists(**v)) {
        // Migrations only add, so that servers of two versions can run side by side.
        tracing::warn!(migration = newer, "the database is newer than this build");
    }
    Ok(())
}
