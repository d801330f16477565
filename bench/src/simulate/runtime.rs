//! Tasks in virtual time: each is asked once a round whether it gets on, in the order of their birth.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use omnify_pipeline::clock;
use omnify_sinks::action::runtime::{Abort, Runtime};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module. Clones share the tasks.
#[derive(Clone)]
pub(super) struct VirtualRuntime(Arc<Mutex<State>>);

struct State {
    begun: Instant,
    born: u64,
    tasks: BTreeMap<u64, Task>,
}

impl VirtualRuntime {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On the virtual clock of this thread, which must have been started.
    pub(super) fn new() -> VirtualRuntime {
        let (begun, tasks) = (clock::instant(), BTreeMap::new());
        VirtualRuntime(Arc::new(Mutex::new(State { begun, born: 0, tasks })))
    }

    /// Time since the beginning.
    pub(super) fn now(&self) -> Duration {
        clock::since(self.lock().begun)
    }

    /// Tasks that have not ended.
    pub(super) fn tasks(&self) -> usize {
        self.lock().tasks.len()
    }

    /// The process is gone, and its tasks with it.
    pub(super) fn clear(&self) {
        let tasks = std::mem::take(&mut self.lock().tasks);
        drop(tasks);
    }

    /// Asks every task once.
    pub(super) fn poll(&self) {
        let ids: Vec<u64> = self.lock().tasks.keys().copied().collect();
        for id in ids {
            // Outside the lock: a task looks at the time.
            let Some(mut task) = self.lock().tasks.remove(&id) else { continue };
            if task.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending() {
                self.lock().tasks.insert(id, task);
            }
        }
    }

    /// Resolves when `time` has passed.
    pub(super) fn after(&self, time: Duration) -> impl Future<Output = ()> + Send + use<> {
        let (runtime, until) = (self.clone(), self.now().saturating_add(time));
        poll_fn(move |_| match runtime.now() >= until {
            true => Poll::Ready(()),
            false => Poll::Pending,
        })
    }
}

impl Runtime for VirtualRuntime {
    fn spawn(&self, task: Task) -> Abort {
        let mut state = self.lock();
        state.born += 1;
        let id = state.born;
        state.tasks.insert(id, task);
        let runtime = self.clone();
        Box::new(move || {
            let task = runtime.lock().tasks.remove(&id);
            drop(task);
        })
    }

    fn sleep(&self, time: Duration) -> Task {
        Box::pin(self.after(time))
    }
}
