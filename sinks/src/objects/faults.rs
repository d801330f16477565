//! A store that fails as stores do, by a seed: for tests and simulation.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::stream::{BoxStream, StreamExt};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// How often something fails, in thousandths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// A request that does nothing.
    pub refused: u64,
    /// A write that took effect and says that it failed.
    pub reply_lost: u64,
    /// A request that takes a while.
    pub slow: u64,
    /// An object that a listing leaves out.
    pub unlisted: u64,
}

/// See the module.
#[derive(Debug)]
pub struct FaultyStore {
    inner: Arc<dyn ObjectStore>,
    rates: Mutex<(Rates, u64)>,
    down: AtomicBool,
    failures: AtomicU64,
}

/// What `slow` costs.
const SLOW: Duration = Duration::from_millis(3);

impl FaultyStore {
    /// Faults in front of `inner`.
    pub fn new(inner: Arc<dyn ObjectStore>, rates: Rates, seed: u64) -> FaultyStore {
        let rates = Mutex::new((rates, seed | 1));
        FaultyStore { inner, rates, down: AtomicBool::new(false), failures: AtomicU64::new(0) }
    }

    /// Answers nothing while `down`.
    pub fn down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    /// Changes the rates.
    pub fn rates(&self, rates: Rates) {
        self.rates.lock().unwrap_or_else(PoisonError::into_inner).0 = rates;
    }

    /// Failures so far.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::SeqCst)
    }

    fn roll(&self, which: impl Fn(&Rates) -> u64) -> bool {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        // xorshift64: any sequence will do, as long as the seed repeats it.
        let mut x = rates.1;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        rates.1 = x;
        x % 1_000 < which(&rates.0)
    }

    fn failure(&self, what: &'static str) -> Error {
        self.failures.fetch_add(1, Ordering::SeqCst);
        Error::Generic { store: "faulty", source: what.into() }
    }

    async fn before(&self) -> Result<()> {
        if self.roll(|rates| rates.slow) {
            tokio::time::sleep(SLOW).await;
        }
        if self.down.load(Ordering::SeqCst) {
            return Err(self.failure("the store is down"));
        }
        if self.roll(|rates| rates.refused) { Err(self.failure("refused")) } else { Ok(()) }
    }

    fn after<T>(&self, done: T) -> Result<T> {
        match self.roll(|rates| rates.reply_lost) {
            true => Err(self.failure("the reply was lost")),
            false => Ok(done),
        }
    }
}

impl fmt::Display for FaultyStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait::async_trait]
impl ObjectStore for FaultyStore {
    async fn put_opts(
        &self,
        location: &Path,
        payload: PutPayload,
        opts: PutOptions,
    ) -> Result<PutResult> {
        self.before().await?;
        let done = self.inner.put_opts(location, payload, opts).await?;
        self.after(done)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.before().await?;
        self.inner.put_multipart_opts(location, opts).await
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.before().await?;
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.roll(|rates| rates.refused) {
            true => futures::stream::iter([Err(self.failure("refused"))]).boxed(),
            false => self.inner.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        if self.down.load(Ordering::SeqCst) {
            return futures::stream::iter([Err(self.failure("the store is down"))]).boxed();
        }
        // Which ones are left out is decided here: a stream outlives the borrow.
        let left_out: Vec<bool> = (0..64).map(|_| self.roll(|rates| rates.unlisted)).collect();
        let listed = self.inner.list(prefix).enumerate();
        listed
            .filter_map(move |(at, meta)| {
                let kept = !left_out[at % left_out.len()];
                async move { kept.then_some(meta) }
            })
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.before().await?;
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.before().await?;
        self.inner.copy_opts(from, to, options).await
    }
}
