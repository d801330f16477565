//! What people tell the engine over HTTP: an input like any other, told durable by a receipt.
//!
//! It enters the queue of arrivals even when rows have no room there: a kill must get through to an
//! engine that is behind. Only the number of arrivals that wait bounds it.

use omnify_decision::control::Control;
use omnify_sinks::serve::{OrderFuture, Orders, PushError};
use tokio::sync::oneshot;

use super::intake::{Arrival, Intake};

/// The door for orders.
pub(super) struct HttpOrders {
    intake: Intake,
}

impl HttpOrders {
    pub(super) fn new(intake: Intake) -> HttpOrders {
        HttpOrders { intake }
    }
}

impl Orders for HttpOrders {
    fn order(&self, control: Control) -> OrderFuture<'_> {
        let intake = self.intake.clone();
        Box::pin(async move {
            let (receipt, durable) = oneshot::channel();
            let controls = vec![control];
            let arrival = Arrival { controls, receipt: Some(receipt), ..Arrival::default() };
            // It waits while the queue of arrivals is full.
            let put = tokio::task::spawn_blocking(move || intake.put(arrival)).await;
            if !put.unwrap_or(false) {
                return Err(PushError::Closed("the engine is stopping".into()));
            }
            durable.await.map_err(|_| PushError::Unknown("the engine ended".into()))
        })
    }
}
