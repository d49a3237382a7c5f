//! Adapters that an operator pins.

use crate::support::{Client, PASSWORD, TestApp, options, send};
use lorikeet_contract::link::{AdapterResource, AdapterState};
use lorikeet_contract::{AdapterVersionId, NodeId, TenantId};
use lorikeet_control_plane::auth::create_operator;
use prost::Message;
use reqwest::{Method, StatusCode};
use serde_json::json;
use uuid::Uuid;

async fn operator(app: &TestApp) -> Client<'_> {
    let owner = options("lk_owner", &app.database);
    create_operator(&owner, "op@example.com", PASSWORD).await.unwrap();
    app.log_in("op@example.com").await
}

/// The adapter `pirate` of a tenant, with one version that answers.
async fn ready_adapter(client: &Client<'_>) -> Uuid {
    let tenant: TenantId = client.tenant.parse().unwrap();
    let id = Uuid::now_v7();
    let mut owner = client.app.owner().await;
    for statement in [
        "insert into adapter (id, tenant_id, name) values ($1, $2, 'pirate')",
        "insert into adapter_version (id, tenant_id, adapter_id, version, state, digest,
           base_weights_digest, rank, targets)
         values ($1, $2, $1, 1, 'ready', sha256('a'), sha256('b'), 8, '{q_proj}')",
        "insert into artifact (tenant_id, version_id, layout_version, object_key, bytes, digest)
         values ($2, $1, 1, 'key', 4096, sha256('c'))",
    ] {
        let query = sqlx::query(statement).bind(id).bind(tenant.as_uuid());
        query.execute(&mut owner).await.unwrap();
    }
    id
}

async fn published(app: &TestApp, version: Uuid) -> AdapterResource {
    let id = AdapterVersionId::from_uuid(version).to_string();
    let payload: Vec<u8> = sqlx::query_scalar("select payload from manifest_change where id = $1")
        .bind(id)
        .fetch_one(&mut app.owner().await)
        .await
        .unwrap();
    AdapterResource::decode(payload.as_slice()).unwrap()
}

#[tokio::test]
async fn an_operator_pins_an_adapter_and_nodes_learn_of_it_with_all_that_they_load_it_by() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let version = ready_adapter(&ann).await;
    let operator = operator(&app).await;
    let path = format!("/api/v1/operator/tenants/{}/adapters/pirate/pin", ann.tenant);
    for _ in 0..2 {
        let pinned = send(operator.request(Method::PUT, &path)).await;
        assert_eq!(pinned.status, StatusCode::NO_CONTENT, "{pinned:?}");
    }
    let resource = published(&app, version).await;
    assert!(resource.pinned && resource.state() == AdapterState::Servable);
    assert_eq!((resource.name.as_str(), resource.version, resource.max_rank), ("pirate", 1, 8));
    let artifact = resource.artifact.clone().unwrap();
    assert_eq!((artifact.object_key.as_str(), artifact.bytes), ("key", 4096));
    assert_eq!((artifact.layout_version, artifact.digest.len()), (1, 32));

    assert_eq!(operator.delete(&path).await.status, StatusCode::NO_CONTENT);
    let unpinned = published(&app, version).await;
    assert_eq!(unpinned, AdapterResource { pinned: false, ..resource });
    let actions: Vec<String> = sqlx::query_scalar(
        "select action from audit where tenant_id = $1 and action like 'adapter.%' order by at",
    )
    .bind(ann.tenant.parse::<TenantId>().unwrap().as_uuid())
    .fetch_all(&mut app.owner().await)
    .await
    .unwrap();
    assert_eq!(actions, ["adapter.pin", "adapter.pin", "adapter.unpin"], "the tenant may read it");

    let missing = path.replace("pirate", "nobody");
    let answer = send(operator.request(Method::PUT, &missing)).await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_tenant_cannot_pin_its_own_adapter() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    ready_adapter(&ann).await;
    let path = format!("/api/v1/operator/tenants/{}/adapters/pirate/pin", ann.tenant);
    let refused = send(ann.request(Method::PUT, &path)).await;
    assert_eq!((refused.status, refused.code()), (StatusCode::FORBIDDEN, "operator_only"));
    let mut page = crate::support::connect("lk_app", &app.database).await;
    sqlx::query("select set_config('app.tenant', $1, false)")
        .bind(ann.tenant.parse::<TenantId>().unwrap().as_uuid().to_string())
        .execute(&mut page)
        .await
        .unwrap();
    let update = sqlx::query("update adapter set pinned = true").execute(&mut page).await;
    let code = update.unwrap_err().as_database_error().unwrap().code().unwrap().into_owned();
    assert_eq!(code, "42501", "the role of the pages may not");
}

#[tokio::test]
async fn the_nodes_page_says_where_each_adapter_is_and_why_a_pin_is_not_kept() {
    let app = TestApp::start().await;
    let ann = app.sign_up("ann").await;
    let version = ready_adapter(&ann).await;
    let digest: Vec<u8> = sqlx::query_scalar("select digest from adapter_version")
        .fetch_one(&mut app.owner().await)
        .await
        .unwrap();
    let adapter = |digest: String, tier: &str, pin_refusal: &str| {
        json!({
            "tenant_id": ann.tenant, "digest": digest, "tier": tier, "bytes": 3_000_000,
            "error": "", "pinned": true, "pin_refusal": pin_refusal,
        })
    };
    let residency = json!({
        "adapters": [
            adapter(hex::encode(digest), "device", ""),
            adapter("ab".repeat(32), "disk", "pins may take 5 bytes of host memory"),
        ],
        "adapters_total": 1203,
        "tiers": [],
    });
    sqlx::query("insert into node (id, name, residency) values ($1, 'gpu-1', $2)")
        .bind(NodeId::new().as_uuid())
        .bind(residency)
        .execute(&mut app.owner().await)
        .await
        .unwrap();
    let operator = operator(&app).await;
    let page = operator.request(Method::GET, "/operator/nodes").send().await.unwrap();
    let text = page.text().await.unwrap();
    for shown in [
        "Adapters on gpu-1",
        "pirate@1",
        "3.0 MB",
        "abababababab",
        "pinned, but not kept: pins may take 5 bytes of host memory",
        "and 1,201 more",
    ] {
        assert!(text.contains(shown), "{shown}: {text}");
    }
    let pin = format!("/operator/tenants/{}/adapters/pirate/", ann.tenant);
    assert!(text.contains(&format!("{pin}unpin")), "{text}");
    for (button, pinned) in [("pin", true), ("unpin", false)] {
        let path = format!("{pin}{button}");
        let form = operator.request(Method::POST, &path).form(&[("on", "nodes")]);
        assert_eq!(send(form).await.headers["location"], "/operator/nodes");
        assert_eq!(published(&app, version).await.pinned, pinned);
        let page = format!("/operator/tenants/{}", ann.tenant);
        let page = operator.request(Method::GET, &page).send().await.unwrap();
        let page = page.text().await.unwrap();
        assert!(page.contains(&format!("{pin}{}", if pinned { "unpin" } else { "pin" })), "{page}");
    }
    let nodes = operator.get("/api/v1/operator/nodes").await.body;
    assert_eq!(nodes["nodes"][0]["adapters"][0]["tenant"], "ann");
}
