//! A disk cache as kill -9, or somebody's hand, leaves it.

use super::*;

impl Rig {
    /// Ends it as kill -9 does: nothing is written any more.
    fn kill(loader: Loader) {
        std::mem::forget(loader);
    }

    async fn fetched(&self) -> Loader {
        let (mut loader, _) = self.open();
        let event = perform(&mut loader, self.fetch()).await;
        assert!(matches!(event, LoadEvent::Fetched { result: Ok(()), .. }));
        loader
    }

    fn flip_a_byte(&self) {
        let mut bytes = fs::read(self.cached_file()).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(self.cached_file(), &bytes).unwrap();
    }
}

async fn assert_serves(rig: &Rig, loader: &mut Loader) {
    let LoadEvent::Read { result, .. } = perform(loader, rig.read()).await else { panic!() };
    let adapter = result.unwrap_or_else(|failure| panic!("{}", failure.reason));
    assert_eq!(adapter.file().unwrap(), rig.packed);
}

/// What changes the cache while the node is down.
type Damage = fn(&Rig);

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_may_have_changed_while_the_node_was_down_is_verified_before_it_is_used() {
    let rig = Rig::new();
    let index = |rig: &Rig| rig.cache().join("index");
    let damages: [(bool, Damage); 4] = [
        (true, |rig| rig.flip_a_byte()),
        // In order, and then somebody's hand.
        (false, |rig| rig.flip_a_byte()),
        (false, |rig| {
            rig.flip_a_byte();
            fs::remove_file(rig.cache().join("index")).unwrap();
        }),
        (false, |rig| {
            rig.flip_a_byte();
            let torn = fs::read(rig.cache().join("index")).unwrap();
            fs::write(rig.cache().join("index"), &torn[..torn.len() / 2]).unwrap();
        }),
    ];
    for (killed, damage) in damages {
        let loader = rig.fetched().await;
        if killed {
            Rig::kill(loader)
        } else {
            drop(loader)
        }
        assert_eq!(index(&rig).is_file(), !killed);
        damage(&rig);
        let (mut loader, found) = rig.open();
        assert_eq!(found, [CachedFile::of(&rig.manifest)]);
        let failure = read_error(&rig, &mut loader).await;
        assert!(failure.file_lost && failure.reason.contains("changed"), "{}", failure.reason);
        perform(&mut loader, rig.fetch()).await;
        assert_serves(&rig, &mut loader).await;
        let dropped = LoadAction::DropFile(CachedFile::of(&rig.manifest));
        perform(&mut loader, dropped).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_file_outlives_a_crash_and_is_believed_after_an_orderly_stop() {
    let rig = Rig::new();
    Rig::kill(rig.fetched().await);
    let (mut loader, _) = rig.open();
    let file = CachedFile::of(&rig.manifest);
    assert!(loader.tasks.disk.is_suspect(&file));
    assert_serves(&rig, &mut loader).await;
    assert!(!loader.tasks.disk.is_suspect(&file), "once is enough");
    drop(loader);
    let (mut loader, _) = rig.open();
    assert!(!loader.tasks.disk.is_suspect(&file));
    assert_serves(&rig, &mut loader).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_file_is_listed_with_the_length_that_it_has() {
    let rig = Rig::new();
    Rig::kill(rig.fetched().await);
    fs::write(rig.cached_file(), &rig.packed[..1000]).unwrap();
    let (mut loader, found) = rig.open();
    assert_eq!(found, [CachedFile { bytes: 1000, ..CachedFile::of(&rig.manifest) }]);
    assert!(read_error(&rig, &mut loader).await.file_lost);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_belong_into_the_cache_is_set_aside_and_stops_nobody() {
    let rig = Rig::new();
    drop(rig.fetched().await);
    let tenant = rig.cached_file().parent().unwrap().to_owned();
    fs::write(rig.cache().join("files/stray"), b"1").unwrap();
    fs::write(tenant.join("notes.txt"), b"2").unwrap();
    fs::create_dir(tenant.join("folder")).unwrap();
    fs::create_dir(rig.cache().join("incoming/folder")).unwrap();
    let (mut loader, found) = rig.open();
    assert_eq!(found, [CachedFile::of(&rig.manifest)]);
    assert_serves(&rig, &mut loader).await;
    let aside = fs::read_dir(rig.cache().join("aside")).unwrap().count();
    assert_eq!((aside, files(&rig.cache().join("files")).len()), (4, 1));
}

/// Never answers.
struct Stalled;

#[async_trait]
impl ObjectStore for Stalled {
    async fn get_range(&self, _: &str, _: Range<u64>) -> Result<Bytes, ObjectError> {
        std::future::pending().await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_that_is_broken_off_ends_at_once_and_leaves_nothing_behind() {
    let rig = Rig::new();
    let (mut loader, _) = rig.open_with(Arc::new(Stalled));
    loader.start(rig.fetch());
    while files(&rig.cache().join("incoming")).is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    loader.cancel_fetch(rig.manifest.key);
    let mut events = Vec::new();
    while events.is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
        loader.poll(&mut events);
    }
    let cancelled = Err(FetchFailure::Cancelled);
    assert!(matches!(&events[0], LoadEvent::Fetched { result, .. } if *result == cancelled));
    assert!(files(&rig.cache()).is_empty());
}
