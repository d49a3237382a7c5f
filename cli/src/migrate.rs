//! `lorikeet migrate`: brings the database up to this build.

use anyhow::Context;
use sqlx::postgres::PgConnectOptions;

#[derive(clap::Args)]
#[command(after_help = "Examples:\n  \
    # the first time, as an administrator: also creates the roles and the database\n  \
    lorikeet migrate --admin-url postgres://postgres@db/lorikeet\n  \
    # later, as the schema's owner\n  \
    lorikeet migrate --admin-url postgres://lk_owner@db/lorikeet\n  \
    # and make an operator\n  \
    LORIKEET_OPERATOR_PASSWORD=... lorikeet migrate --admin-url ... --operator-email ops@example.com")]
pub struct Args {
    /// The database, logging in as an administrator, or as lk_owner once the roles exist
    #[arg(long, env = "LORIKEET_ADMIN_DATABASE_URL", value_name = "URL", hide_env_values = true)]
    admin_url: String,
    /// Make this address an operator, whether its account exists or not
    #[arg(
        long,
        env = "LORIKEET_OPERATOR_EMAIL",
        value_name = "EMAIL",
        requires = "operator_password"
    )]
    operator_email: Option<String>,
    /// The operator's password
    #[arg(
        long,
        env = "LORIKEET_OPERATOR_PASSWORD",
        value_name = "PASSWORD",
        hide_env_values = true
    )]
    operator_password: Option<String>,
}

pub async fn run(args: Args) -> anyhow::Result<()> {
    let url: PgConnectOptions = args.admin_url.parse().context(
        "--admin-url is not a PostgreSQL address such as postgres://postgres@db/lorikeet",
    )?;
    lorikeet_control_plane::migrate(&url).await?;
    println!("the database is up to date");
    if let (Some(email), Some(password)) = (args.operator_email, args.operator_password) {
        lorikeet_control_plane::create_operator(&url, &email, &password).await?;
        println!("{email} is an operator");
    }
    Ok(())
}
