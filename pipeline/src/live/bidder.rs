//! `POST /v1/bids`: answered from the book that the decision thread published last.

use std::sync::PoisonError;

use omnify_decision::bid::{BidAnswer, BidContext};
use omnify_operators::model::Level;
use omnify_sinks::serve::{BidError, Bidder};

use crate::engine::SharedBook;

/// Answers from the shared book.
pub(super) struct BookBidder {
    book: SharedBook,
}

impl BookBidder {
    /// Answers from `book`.
    pub(super) fn new(book: SharedBook) -> BookBidder {
        BookBidder { book }
    }
}

impl Bidder for BookBidder {
    fn bid(&self, context: &BidContext) -> Result<BidAnswer, BidError> {
        let book = self.book.read().unwrap_or_else(PoisonError::into_inner).clone();
        if book.tick() == 0 {
            return Err(BidError::Unavailable("nothing has been decided yet".into()));
        }
        let campaign = context.key.ancestor(Level::Campaign).ok_or_else(|| {
            BidError::Invalid(format!("`{}` is no campaign and no creative", context.key))
        })?;
        if book.quote(&campaign).is_none() {
            let text = format!("`{campaign}` has not been seen yet, or no goal covers it");
            return Err(BidError::Unknown(text));
        }
        Ok(book.answer(context))
    }
}
