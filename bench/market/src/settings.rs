//! Settings of a market's entities, and the rules by which they change.

use omnify_operators::model::{EntityKey, Level};

use crate::action::{
    ActionError, Applied, EntitySettings, QUOTA_WINDOW_US, Setting, Status, amount,
};
use crate::market::Market;
use crate::world::{Account, Place};

impl Market {
    fn place(&self, key: &EntityKey) -> Result<Place, ActionError> {
        let unknown = || ActionError::UnknownEntity(key.clone());
        self.world.places.get(key).copied().ok_or_else(unknown)
    }

    /// The settings of a campaign, ad group or creative.
    pub fn settings(&self, key: &EntityKey) -> Option<EntitySettings> {
        self.world.places.get(key).map(|place| self.settings_at(key, *place))
    }

    /// Settings of the entities after the first `skip`, in key order, at most `limit`.
    pub fn settings_page(&self, skip: usize, limit: usize) -> Vec<EntitySettings> {
        let places = self.world.places.iter().skip(skip).take(limit);
        places.map(|(key, place)| self.settings_at(key, *place)).collect()
    }

    fn settings_at(&self, key: &EntityKey, place: Place) -> EntitySettings {
        let campaign = self.campaign_of(place);
        let state = &self.campaigns[campaign as usize];
        let account = self.account_of(campaign);
        let (level, status) = match place {
            Place::Campaign(_) => (Level::Campaign, state.status),
            Place::AdGroup(index) => (Level::AdGroup, self.ad_groups[index as usize]),
            Place::Creative(index) => (Level::Creative, self.creatives[index as usize].status),
        };
        let owned = |micros| (level == Level::Campaign).then_some(micros);
        EntitySettings {
            entity: key.clone(),
            level,
            bid_micros: owned(state.bid_micros),
            daily_budget_micros: owned(state.budget_micros),
            spent_today_micros: owned(state.spent_today_micros),
            status,
            currency: account.currency,
            time_zone: account.time_zone.iana_name().unwrap_or("UTC").to_owned(),
        }
    }

    fn campaign_of(&self, place: Place) -> u32 {
        match place {
            Place::Campaign(index) => index,
            Place::AdGroup(index) => self.world.ad_groups[index as usize].campaign,
            Place::Creative(index) => self.world.creatives[index as usize].campaign,
        }
    }

    fn account_of(&self, campaign: u32) -> &Account {
        &self.world.accounts[self.world.campaigns[campaign as usize].account as usize]
    }

    /// Sets an absolute value, from the next step on. What is true already changes nothing. With
    /// `before`, only if that is what holds.
    pub fn apply(
        &mut self,
        owner: &EntityKey,
        desired: &Setting,
        before: Option<&Setting>,
    ) -> Result<Applied, ActionError> {
        let place = self.place(owner)?;
        let current = self.current(owner, place, desired)?;
        if let Some(before) = before
            && *before != current
        {
            return Err(ActionError::Conflict { current });
        }
        let effective = self.checked(place, desired)?;
        if effective == current {
            return Ok(Applied { applied: false, effective });
        }
        if let Setting::Budget { budget_micros } = effective {
            self.check_budget_change(owner, place, budget_micros)?;
        }
        self.set(place, &effective);
        Ok(Applied { applied: true, effective })
    }

    /// What holds of the kind of setting that is `desired`.
    fn current(
        &self,
        owner: &EntityKey,
        place: Place,
        desired: &Setting,
    ) -> Result<Setting, ActionError> {
        let misplaced = || {
            let message = format!("a {} does not own this setting", owner.level());
            Err(ActionError::invalid("setting", message))
        };
        let state = match place {
            Place::Campaign(index) => Some(&self.campaigns[index as usize]),
            _ => None,
        };
        match (desired, state) {
            (Setting::Bid { .. }, Some(state)) => Ok(Setting::Bid { bid_micros: state.bid_micros }),
            (Setting::Budget { .. }, Some(state)) => {
                Ok(Setting::Budget { budget_micros: state.budget_micros })
            }
            (Setting::Bid { .. } | Setting::Budget { .. }, None) => misplaced(),
            (Setting::Status { .. }, _) => {
                Ok(Setting::Status { status: self.settings_at(owner, place).status })
            }
            (Setting::Rotate { from, to }, _) => {
                if matches!(place, Place::Creative(_)) {
                    return misplaced();
                }
                let from_status = self.creative_below(owner, from, "from")?.1;
                let to_status = self.creative_below(owner, to, "to")?.1;
                if from == to {
                    return Err(ActionError::invalid("to", "must differ from `from`"));
                }
                // Rotated already when `from` rests and `to` delivers; the other way round is
                // "not yet", written as the rotation that would undo this one.
                let done = from_status == Status::Paused && to_status == Status::Enabled;
                let (from, to) = if done { (from, to) } else { (to, from) };
                Ok(Setting::Rotate { from: from.clone(), to: to.clone() })
            }
        }
    }

    fn creative_below(
        &self,
        owner: &EntityKey,
        key: &EntityKey,
        field: &'static str,
    ) -> Result<(usize, Status), ActionError> {
        match self.world.places.get(key) {
            Some(Place::Creative(index)) if key.ancestor(owner.level()).as_ref() == Some(owner) => {
                let index = *index as usize;
                Ok((index, self.creatives[index].status))
            }
            _ => {
                let message = format!("`{key}` is not a creative of `{owner}`");
                Err(ActionError::invalid(field, message))
            }
        }
    }

    /// The setting as the platform would hold it.
    fn checked(&self, place: Place, desired: &Setting) -> Result<Setting, ActionError> {
        let account = self.account_of(self.campaign_of(place));
        let quantum = account.quantum_micros;
        Ok(match desired {
            Setting::Bid { bid_micros } => {
                let limits = (account.bid_min_micros, account.bid_max_micros);
                let bid_micros = amount("bid_micros", *bid_micros, quantum, limits)?;
                Setting::Bid { bid_micros }
            }
            Setting::Budget { budget_micros } => {
                let limits = (account.budget_min_micros, account.budget_max_micros);
                let budget_micros = amount("budget_micros", *budget_micros, quantum, limits)?;
                Setting::Budget { budget_micros }
            }
            other => other.clone(),
        })
    }

    /// The platform's rules on budget changes; counts the change when they allow it.
    fn check_budget_change(
        &mut self,
        owner: &EntityKey,
        place: Place,
        budget_micros: i64,
    ) -> Result<(), ActionError> {
        let now = self.now_us();
        let campaign = self.campaign_of(place);
        let platform = self.account_of(campaign).platform.clone();
        let state = &mut self.campaigns[campaign as usize];
        let floor = (state.spent_today_micros as f64 * platform.budget_to_spend_min) as i64;
        if budget_micros < floor {
            let message = format!("{budget_micros} is below {floor}, what today's spend requires");
            return Err(ActionError::invalid("budget_micros", message));
        }
        if let Some(limit) = platform.budget_changes_per_hour {
            let changes = &mut state.budget_changes;
            while changes.front().is_some_and(|change| *change + QUOTA_WINDOW_US <= now) {
                changes.pop_front();
            }
            if changes.len() >= limit as usize {
                let free_us = changes.front().map_or(now, |change| change + QUOTA_WINDOW_US);
                let retry_after_s = (free_us - now + 999_999) / 1_000_000;
                return Err(ActionError::Quota { owner: owner.clone(), limit, retry_after_s });
            }
            changes.push_back(now);
        }
        Ok(())
    }

    fn set(&mut self, place: Place, setting: &Setting) {
        let campaign = self.campaign_of(place) as usize;
        match (setting, place) {
            (Setting::Bid { bid_micros }, _) => self.campaigns[campaign].bid_micros = *bid_micros,
            (Setting::Budget { budget_micros }, _) => {
                self.campaigns[campaign].budget_micros = *budget_micros;
            }
            (Setting::Status { status }, Place::Campaign(index)) => {
                self.campaigns[index as usize].status = *status;
            }
            (Setting::Status { status }, Place::AdGroup(index)) => {
                self.ad_groups[index as usize] = *status;
            }
            (Setting::Status { status }, Place::Creative(index)) => {
                self.creatives[index as usize].status = *status;
            }
            (Setting::Rotate { from, to }, _) => {
                for (key, status) in [(from, Status::Paused), (to, Status::Enabled)] {
                    if let Some(Place::Creative(index)) = self.world.places.get(key) {
                        self.creatives[*index as usize].status = status;
                    }
                }
            }
        }
    }
}
