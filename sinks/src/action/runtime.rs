//! Where the calls to a platform run and wait: the process's runtime, or a simulation's virtual time.

use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Either, select};
use tokio::runtime::Handle;

/// Ends a task; nothing happens when it has ended.
pub type Abort = Box<dyn FnOnce() + Send>;

/// Runs tasks and knows how time passes for them.
pub trait Runtime: Send + Sync {
    /// Runs `task` to its end, unless it is aborted.
    fn spawn(&self, task: BoxFuture<'static, ()>) -> Abort;

    /// Resolves when `time` has passed.
    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()>;
}

impl Runtime for Handle {
    fn spawn(&self, task: BoxFuture<'static, ()>) -> Abort {
        let abort = Handle::spawn(self, task).abort_handle();
        Box::new(move || abort.abort())
    }

    fn sleep(&self, time: Duration) -> BoxFuture<'static, ()> {
        tokio::time::sleep(time).boxed()
    }
}

/// What `call` comes to, if it does within `time`.
pub(super) async fn within<T>(
    runtime: &dyn Runtime,
    time: Duration,
    call: impl Future<Output = T> + Send + Unpin,
) -> Option<T> {
    match select(call, runtime.sleep(time)).await {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}
