//! Letting go of what has fallen silent: what the stage remembers is bounded by what delivered of
//! late, not by what ever did.
//!
//! Whatever has delivered within the longest window brings a row every few minutes. A creative or a
//! campaign without a row for [`SILENT_DAYS`] has not delivered for longer than that by far: once a
//! UTC day, before anything is decided, it becomes as if it had never been met, with its settings,
//! limits, episodes and quote. One that an action or a proposal is about stays until that has ended.

use std::sync::Arc;

use omnify_operators::model::{DAY_US, Tick, us_of_tick};

use super::{Stage, count};

/// Days without a row after which nothing is remembered. The longest look back is that of the
/// limits of changes, seven days; what an engine was away for is on top.
const SILENT_DAYS: u64 = 29;

impl Stage {
    pub(super) fn let_go(&mut self, tick: Tick) {
        let before = tick.saturating_sub(SILENT_DAYS * (DAY_US / 1_000) as u64);
        let Stage { ledger, campaigns, wear, book, shared, wakes, campaign_at, .. } = self;
        ledger.age(us_of_tick(tick));
        wear.let_go(before, ledger, book);
        for at in campaigns.positions(|campaign| campaign.memory.row.tick < before) {
            let campaign = &mut campaigns[at];
            if ledger.read(campaign.memory.owner).is_busy() {
                continue;
            }
            count(shared, campaign, None);
            let (info, memory) = (&campaign.info, &campaign.memory);
            ledger.remove(memory.owner);
            book.remove(&info.key);
            if let Some(wake) = memory.wake {
                wakes.remove(&(wake, info.order, at));
            }
            wear.forget_episodes(info.id);
            Arc::make_mut(campaign_at).remove(&info.id);
            campaigns.remove(at);
        }
    }
}
