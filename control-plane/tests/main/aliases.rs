//! Names that point at versions.

use crate::support::{Client, TestApp, send};
use lorikeet_contract::link::{AliasResource, ResourceKind};
use lorikeet_contract::{AdapterVersionId, TenantId};
use prost::Message;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use uuid::Uuid;

const ALIAS: &str = "/api/v1/adapters/pirate/aliases/stable";

/// Two versions that answer, and one that is not ready.
async fn adapter_with_versions(client: &Client<'_>) -> [Uuid; 3] {
    let tenant: TenantId = client.tenant.parse().unwrap();
    let (adapter, versions) = (Uuid::now_v7(), [Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7()]);
    let mut owner = client.app.owner().await;
    sqlx::query("insert into adapter (id, tenant_id, name) values ($1, $2, 'pirate')")
        .bind(adapter)
        .bind(tenant.as_uuid())
        .execute(&mut owner)
        .await
        .unwrap();
    for (number, id) in (1..).zip(versions) {
        sqlx::query(
            "insert into adapter_version (id, tenant_id, adapter_id, version, state)
             values ($1, $2, $3, $4, case when $4 < 3 then 'ready' else 'verified' end)",
        )
        .bind(id)
        .bind(tenant.as_uuid())
        .bind(adapter)
        .bind(number)
        .execute(&mut owner)
        .await
        .unwrap();
    }
    versions
}

async fn set(client: &Client<'_>, path: &str, version: Value) -> crate::support::Answer {
    let body = json!({ "version": version });
    send(client.request(Method::PUT, path).json(&body)).await
}

/// What the nodes have been told of aliases: None for a tombstone.
async fn published(app: &TestApp) -> Vec<Option<AliasResource>> {
    let rows: Vec<(Option<Vec<u8>>,)> =
        sqlx::query_as("select payload from manifest_change where kind = $1 order by id")
            .bind(ResourceKind::Alias as i32)
            .fetch_all(&mut app.owner().await)
            .await
            .unwrap();
    let read = |bytes: Vec<u8>| AliasResource::decode(bytes.as_slice()).unwrap();
    rows.into_iter().map(|(payload,)| payload.map(read)).collect()
}

#[tokio::test]
async fn an_alias_is_set_moved_shown_and_taken_away_and_nodes_learn_of_it() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let versions = adapter_with_versions(&ann).await;
    let answer = set(&ann, ALIAS, json!(1)).await;
    assert_eq!((answer.status, &answer.body["version"]), (StatusCode::OK, &json!(1)));
    let [Some(resource)] = &published(&app).await[..] else { panic!("one alias") };
    assert_eq!((resource.adapter_name.as_str(), resource.alias.as_str()), ("pirate", "stable"));
    assert_eq!(resource.version_id, AdapterVersionId::from_uuid(versions[0]).to_string());

    assert_eq!(set(&ann, ALIAS, json!(2)).await.status, StatusCode::OK);
    let [Some(moved)] = &published(&app).await[..] else { panic!("the same alias") };
    assert_eq!(moved.version_id, AdapterVersionId::from_uuid(versions[1]).to_string());
    assert_eq!(moved.id, resource.id);
    let shown = ann.get("/api/v1/adapters/pirate").await.body;
    assert_eq!(shown["aliases"][0]["alias"], "stable");
    assert_eq!(shown["aliases"][0]["version"], 2);
    let page = ann.request(Method::GET, "/adapters/pirate").send().await.unwrap();
    let page = page.text().await.unwrap();
    assert!(page.contains("pirate@stable</code> is version 2"), "{page}");

    assert_eq!(ann.delete(ALIAS).await.status, StatusCode::NO_CONTENT);
    assert_eq!(published(&app).await, [None]);
    assert_eq!(ann.delete(ALIAS).await.status, StatusCode::NOT_FOUND);
    assert_eq!(ann.get("/api/v1/adapters/pirate").await.body["aliases"], json!([]));
}

#[tokio::test]
async fn an_alias_points_at_a_version_that_answers_and_is_no_number() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    adapter_with_versions(&ann).await;
    let answer = set(&ann, ALIAS, json!(3)).await;
    assert_eq!((answer.status, answer.code()), (StatusCode::CONFLICT, "version_not_ready"));
    assert_eq!(set(&ann, ALIAS, json!(4)).await.status, StatusCode::NOT_FOUND);
    let number = set(&ann, "/api/v1/adapters/pirate/aliases/3", json!(1)).await;
    assert_eq!((number.status, number.code()), (StatusCode::UNPROCESSABLE_ENTITY, "invalid"));
    assert_eq!(published(&app).await, []);
}
