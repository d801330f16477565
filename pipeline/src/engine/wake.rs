//! Waking parked workers: whoever enqueues for a worker unparks its thread.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Thread;

/// The threads of all workers, once they have started.
#[derive(Clone, Default)]
pub struct Wakers(Arc<Mutex<Vec<Thread>>>);

impl Wakers {
    /// Adds the calling thread.
    pub fn register(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(std::thread::current());
    }

    /// Unparks every registered thread. A worker that is not parked will not park once.
    pub fn wake(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Thread::unpark);
    }
}
