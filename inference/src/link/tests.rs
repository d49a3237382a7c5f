use super::denied::DenySet;
use super::snapshot::{SnapshotAssembly, SnapshotError};
use super::store::ManifestStore;
use super::uplink::Uplink;
use super::view::{ManifestView, VersionState};
use crate::engine::Revocation;
use lorikeet_contract::link::{
    AdapterResource, AdapterState, AliasResource, Artifact, Delta, KeyResource, Limits, Resource,
    ResourceKind, ResourceRef, Revocation as RevocationEntry, Revocations, SnapshotChunk,
    TenantResource, revocation::Target,
};
use lorikeet_contract::manifest::ManifestState;
use lorikeet_contract::{AdapterId, AdapterVersionId, AliasId, KeyId, TenantId, WeightsDigest};
use proptest::prelude::*;
use prost::Message;
use std::fs::{self, OpenOptions};
use std::path::Path;

const BASE: WeightsDigest = WeightsDigest([1; 32]);

fn resource(kind: ResourceKind, id: impl ToString, payload: impl Message) -> Resource {
    Resource { kind: kind as i32, id: id.to_string(), payload: payload.encode_to_vec() }
}

fn tenant(id: TenantId, suspended: bool) -> Resource {
    let payload = TenantResource { id: id.to_string(), suspended, ..TenantResource::default() };
    resource(ResourceKind::Tenant, id, payload)
}

fn key(id: KeyId, tenant_id: TenantId, key_id: &str) -> Resource {
    let payload = KeyResource {
        id: id.to_string(),
        tenant_id: tenant_id.to_string(),
        key_id: key_id.into(),
        secret_hash: vec![3; 32],
        scopes: vec!["inference".into(), "a scope of tomorrow".into()],
        expires_unix_ms: None,
    };
    resource(ResourceKind::Key, id, payload)
}

fn adapter(tenant_id: TenantId, name: &str, version: u32, state: AdapterState) -> AdapterResource {
    AdapterResource {
        id: AdapterVersionId::new().to_string(),
        tenant_id: tenant_id.to_string(),
        adapter_id: AdapterId::new().to_string(),
        name: name.into(),
        version,
        digest: vec![version as u8; 32],
        base_weights_digest: BASE.0.to_vec(),
        artifact: Some(Artifact {
            layout_version: 1,
            object_key: format!("{name}/{version}"),
            bytes: 4096,
            digest: vec![9; 32],
        }),
        max_rank: 16,
        targets: vec!["q_proj".into()],
        state: state as i32,
        pinned: false,
    }
}

fn published(adapter: &AdapterResource) -> Resource {
    resource(ResourceKind::Adapter, &adapter.id, adapter.clone())
}

fn state(resources: impl IntoIterator<Item = Resource>) -> ManifestState {
    ManifestState::from_resources(7, 1, resources)
}

/// The delta that leads from `before` to `after`, as the control plane would send it.
fn delta(before: &ManifestState, after: &ManifestState) -> Delta {
    let owned = |(kind, id, payload): (i32, &str, &[u8])| Resource {
        kind,
        id: id.to_owned(),
        payload: payload.to_vec(),
    };
    let missing = |r: &Resource| !after.iter().any(|(kind, id, _)| kind == r.kind && id == r.id);
    Delta {
        cp_epoch: after.cp_epoch,
        from_revision: before.revision,
        to_revision: after.revision,
        state_digest: after.digest().to_vec(),
        upserts: after.iter().map(owned).collect(),
        tombstones: before
            .iter()
            .map(owned)
            .filter(missing)
            .map(|r| ResourceRef { kind: r.kind, id: r.id })
            .collect(),
    }
}

#[test]
fn a_bare_name_means_the_newest_servable_version_and_a_selector_means_its_own() {
    let owner = TenantId::new();
    let versions = [
        adapter(owner, "pirate", 1, AdapterState::Servable),
        adapter(owner, "pirate", 2, AdapterState::Servable),
        adapter(owner, "pirate", 3, AdapterState::Pending),
        adapter(owner, "draft", 1, AdapterState::Pending),
    ];
    let alias = AliasResource {
        id: AliasId::new().to_string(),
        tenant_id: owner.to_string(),
        adapter_name: "pirate".into(),
        alias: "stable".into(),
        version_id: versions[0].id.clone(),
    };
    let alias = resource(ResourceKind::Alias, alias.id.clone(), alias);
    let view = ManifestView::new(&state(versions.iter().map(published).chain([alias])), BASE);

    let version = |model| view.version(owner, model).map(|v| v.version);
    assert_eq!(version("pirate"), Some(2));
    assert_eq!(version("pirate@1"), Some(1));
    assert_eq!(version("pirate@3"), Some(3));
    assert_eq!(version("pirate@stable"), Some(1));
    assert_eq!(version("draft"), Some(1));
    for unknown in ["pirate@4", "pirate@nightly", "pirate@", "@", "Pirate", ""] {
        assert_eq!(version(unknown), None, "{unknown}");
    }
    assert_eq!(view.version(TenantId::new(), "pirate"), None, "names are a tenant's own");
    assert!(view.rejected().is_empty());
}

#[test]
fn one_bad_resource_is_rejected_with_its_reason_and_blocks_no_other() {
    let owner = TenantId::new();
    let good = adapter(owner, "good", 1, AdapterState::Servable);
    let mut other_base = adapter(owner, "other-base", 1, AdapterState::Servable);
    other_base.base_weights_digest = vec![2; 32];
    let mut no_artifact = adapter(owner, "no-artifact", 1, AdapterState::Servable);
    no_artifact.artifact = None;
    let mut new_layout = adapter(owner, "new-layout", 1, AdapterState::Servable);
    new_layout.artifact.as_mut().expect("an artifact").layout_version = 2;
    let mut of_another = published(&adapter(owner, "renamed", 1, AdapterState::Servable));
    of_another.id = AdapterVersionId::new().to_string();
    let undecodable =
        Resource { kind: ResourceKind::Key as i32, id: "key_x".into(), payload: vec![0xff; 9] };
    let of_tomorrow = Resource { kind: 77, id: "x".into(), payload: vec![1, 2, 3] };

    let bad = [published(&other_base), published(&no_artifact), published(&new_layout)];
    let all = [published(&good), tenant(owner, false), of_another, undecodable, of_tomorrow];
    let view = ManifestView::new(&state(all.into_iter().chain(bad)), BASE);

    let reason_of = |id: &str| {
        let rejection = view.rejected().iter().find(|r| r.id == id);
        rejection.unwrap_or_else(|| panic!("{id} is rejected")).reason.clone()
    };
    assert!(reason_of(&other_base.id).contains("for the base model 020202020202"));
    assert!(reason_of(&no_artifact.id).contains("no artifact"));
    assert!(reason_of(&new_layout.id).contains("layout 2"));
    assert!(reason_of("key_x").contains("does not read"));
    assert!(reason_of("x").contains("kind 77"));
    assert_eq!(view.rejected().len(), 6);
    let served = view.version(owner, "good").map(|v| &v.state);
    assert!(matches!(served, Some(VersionState::Servable(_))));
    let refused = view.version(owner, "other-base").map(|v| &v.state);
    assert!(matches!(refused, Some(VersionState::Rejected(_))), "its owner is told");
    assert!(view.tenant(owner).is_some());
}

#[test]
fn a_snapshot_counts_only_when_it_is_whole_and_its_digest_agrees() {
    let (a, b) = (tenant(TenantId::new(), false), tenant(TenantId::new(), true));
    let whole = state([a.clone(), b.clone()]);
    let chunk = |index, last, resource: &Resource| SnapshotChunk {
        cp_epoch: 7,
        revision: 1,
        index,
        last,
        state_digest: whole.digest().to_vec(),
        resources: vec![resource.clone()],
    };
    let mut assembly = SnapshotAssembly::default();
    assert_eq!(assembly.push(chunk(0, false, &a)), Ok(None));
    assert_eq!(assembly.push(chunk(1, true, &b)), Ok(Some(whole.clone())));

    assert_eq!(
        assembly.push(chunk(1, true, &b)),
        Err(SnapshotError::Order { expected: 0, got: 1 })
    );
    assert_eq!(assembly.push(chunk(0, false, &a)), Ok(None));
    assert_eq!(assembly.push(chunk(1, true, &a)), Err(SnapshotError::Digest), "b is missing");
    assert_eq!(assembly.push(chunk(0, false, &b)), Ok(None));
    assert_eq!(assembly.push(chunk(0, false, &a)), Ok(None), "begun anew");
    let mut later = chunk(1, true, &b);
    later.revision = 2;
    assert_eq!(assembly.push(later), Err(SnapshotError::Mixed { expected: 1, got: 2 }));
}

#[test]
fn a_change_names_what_it_takes_away_and_nothing_else() {
    let (kept, suspended) = (TenantId::new(), TenantId::new());
    let (key_kept, key_gone) = (KeyId::new(), KeyId::new());
    let first = adapter(kept, "pirate", 1, AdapterState::Servable);
    let same_bytes = AdapterResource {
        digest: first.digest.clone(),
        ..adapter(kept, "copy", 5, AdapterState::Servable)
    };
    let gone = adapter(kept, "old", 2, AdapterState::Servable);
    let before = state([
        tenant(kept, false),
        tenant(suspended, false),
        key(key_kept, kept, "aaaaaaaa"),
        key(key_gone, kept, "bbbbbbbb"),
        published(&first),
        published(&same_bytes),
        published(&gone),
    ]);
    let after = state([
        tenant(kept, false),
        tenant(suspended, true),
        key(key_kept, kept, "aaaaaaaa"),
        published(&same_bytes),
    ]);
    let (before, after) = (ManifestView::new(&before, BASE), ManifestView::new(&after, BASE));
    let withdrawn = after.withdrawn_since(&before);
    assert_eq!(withdrawn.access, [Revocation::Key(key_gone), Revocation::Tenant(suspended)],);
    let digests: Vec<u8> = withdrawn.adapters.iter().map(|key| key.digest.0[0]).collect();
    assert_eq!(digests, [2], "the copy still needs the bytes of the first");
    assert_eq!(after.withdrawn_since(&after), super::view::Withdrawn::default());
}

#[test]
fn a_revocation_holds_until_the_manifest_has_settled_it() {
    let (owner, id) = (TenantId::new(), KeyId::new());
    let view = |resources: &[Resource]| ManifestView::new(&state(resources.to_vec()), BASE);
    let active = view(&[tenant(owner, false), key(id, owner, "aaaaaaaa")]);
    let suspended = view(&[tenant(owner, true)]);

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("denied.json");
    let mut denied = DenySet::load(&path).expect("an empty set");
    let entry = |seq, target| RevocationEntry { seq, target: Some(target) };
    let added = denied.add(&Revocations {
        seq: 9,
        entries: vec![
            entry(8, Target::KeyId(id.to_string())),
            entry(9, Target::TenantId(owner.to_string())),
            entry(9, Target::KeyId("not an id".into())),
        ],
    });
    assert_eq!(added, [Revocation::Key(id), Revocation::Tenant(owner)]);
    denied.save(&path).expect("saved");
    let mut denied = DenySet::load(&path).expect("a set");
    assert_eq!(denied.seq, 9);
    assert!(denied.denies(id, TenantId::new()) && denied.denies(KeyId::new(), owner));

    assert!(!denied.settle(&active, &active), "an older manifest settles nothing");
    assert!(denied.settle(&active, &suspended), "the key is gone");
    assert!(!denied.denies(id, TenantId::new()) && denied.denies(id, owner));
    assert!(denied.settle(&suspended, &active), "served again");
    assert!(!denied.denies(id, owner));
}

/// States that follow one another, each with one tenant more or less.
fn history(len: u8) -> Vec<ManifestState> {
    let tenants: Vec<Resource> = (0..len).map(|_| tenant(TenantId::new(), false)).collect();
    (0..len)
        .map(|n| {
            let some = tenants.iter().take(usize::from(n) + 1).skip(usize::from(n) / 3).cloned();
            ManifestState::from_resources(7, u64::from(n) + 1, some)
        })
        .collect()
}

#[test]
fn the_kept_manifest_is_the_last_one_after_any_number_of_changes() {
    let history = history(9);
    let dir = tempfile::tempdir().expect("a directory");
    let (mut store, empty) = ManifestStore::open(dir.path()).expect("opens");
    assert_eq!(empty, ManifestState::default());
    store.replace(&history[0]).expect("kept");
    for pair in history.windows(2) {
        store.append(&delta(&pair[0], &pair[1]), &pair[1]).expect("kept");
        let (reopened, state) = ManifestStore::open(dir.path()).expect("opens");
        assert_eq!(state, pair[1]);
        store = reopened;
    }
    let before_compaction = fs::read(dir.path().join("deltas")).expect("deltas");
    store.replace(&history[8]).expect("kept");
    // A crash between the snapshot's rename and the emptying of the deltas.
    fs::write(dir.path().join("deltas"), before_compaction).expect("written");
    let (_, state) = ManifestStore::open(dir.path()).expect("opens");
    assert_eq!(state, history[8]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_kept_manifest_cut_at_any_byte_is_an_earlier_one_and_takes_the_rest_again(
        cut in 0.0f64..1.0,
    ) {
        let history = history(6);
        let dir = tempfile::tempdir().expect("a directory");
        let (mut store, _) = ManifestStore::open(dir.path()).expect("opens");
        store.replace(&history[0]).expect("kept");
        for pair in history.windows(2) {
            store.append(&delta(&pair[0], &pair[1]), &pair[1]).expect("kept");
        }
        drop(store);
        let path = dir.path().join("deltas");
        let len = fs::metadata(&path).expect("deltas").len();
        let keep = (len as f64 * cut) as u64;
        OpenOptions::new().write(true).open(&path).and_then(|f| f.set_len(keep)).expect("a cut");

        let (mut store, state) = ManifestStore::open(dir.path()).expect("opens");
        let at = history.iter().position(|s| *s == state);
        let at = at.ok_or_else(|| TestCaseError::fail("a state that never was"))?;
        for pair in history[at..].windows(2) {
            store.append(&delta(&pair[0], &pair[1]), &pair[1]).expect("kept");
        }
        drop(store);
        let (_, state) = ManifestStore::open(dir.path()).expect("opens");
        prop_assert_eq!(&state, &history[5]);
    }
}

#[tokio::test]
async fn an_unusable_address_ca_or_token_is_named_before_anything_is_dialled() {
    let dir = tempfile::tempdir().expect("a directory");
    let token = dir.path().join("token");
    fs::write(&token, "not a token").expect("written");
    let missing = dir.path().join("missing");
    let refusal = |url: &str, ca: Option<&Path>, token: &Path| match Uplink::new(url, ca, token) {
        Ok(_) => panic!("{url} is taken"),
        Err(error) => error.to_string(),
    };
    let address = refusal("control plane", None, &token);
    assert!(address.contains("`control plane` is not an address"), "{address}");
    let malformed = refusal("http://127.0.0.1:7730", None, &token);
    assert!(malformed.contains(&token.display().to_string()), "{malformed}");
    let no_token = refusal("http://127.0.0.1:7730", None, &missing);
    assert!(no_token.contains("missing"), "{no_token}");
    for (ca, reason) in [(&missing, "No such file"), (&token, "no certificate in PEM")] {
        let error = refusal("https://control-plane:7730", Some(ca), &token);
        assert!(error.starts_with("LORIKEET_CONTROL_PLANE_CA"), "{error}");
        assert!(error.contains(&ca.display().to_string()) && error.contains(reason), "{error}");
    }
}

#[test]
fn a_tenants_limits_are_what_the_manifest_says_and_its_weight_is_never_zero() {
    let id = TenantId::new();
    let limits = Limits {
        max_concurrency: Some(0),
        requests_per_minute: Some(60),
        tokens_per_minute: None,
        weight: Some(0),
        adapter_host_bytes: Some(1 << 30),
        adapter_device_bytes: None,
    };
    let payload =
        TenantResource { id: id.to_string(), limits: Some(limits), ..TenantResource::default() };
    let state = ManifestState::from_resources(1, 1, [resource(ResourceKind::Tenant, id, payload)]);
    let view = ManifestView::new(&state, BASE);
    let limits = view.tenant(id).expect("it is there").limits;
    assert_eq!((limits.max_concurrency, limits.requests_per_minute), (Some(0), Some(60)));
    assert_eq!(limits.tokens_per_minute, None, "absent is no limit");
    let share = limits.share();
    assert_eq!((share.weight, share.host_bytes, share.device_bytes), (1, Some(1 << 30), None));
}
