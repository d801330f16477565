//! Which weights a context switches on.
//!
//! Every feature is a namespace with a value, for example (platform × hour of day, `meta` × 13).
//! Its slot is the XXH3 hash of the text, seeded by namespace and number, cut to the model's bits:
//! the same in every process. Two features in one slot share a weight.

use super::Context;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The most features one context has.
pub(crate) const MAX_ACTIVE: usize = 12;

/// What kind of feature a slot stands for. The numbers are part of the model's format.
#[derive(Clone, Copy)]
#[repr(u8)]
enum Namespace {
    Everything = 0,
    Platform = 1,
    Account = 2,
    Campaign = 3,
    AdGroup = 4,
    Creative = 5,
    HourOfDay = 6,
    DayOfWeek = 7,
    PlatformHour = 8,
    CampaignHour = 9,
    Frequency = 10,
    PlatformFrequency = 11,
}

/// The active slots of one context, in a fixed order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Slots {
    slots: [u16; MAX_ACTIVE],
    len: u8,
}

impl Slots {
    fn push(&mut self, slot: u16) {
        self.slots[usize::from(self.len)] = slot;
        self.len += 1;
    }

    /// The slots; one may occur twice when two features share it.
    pub(crate) fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.slots[..usize::from(self.len)].iter().map(|slot| usize::from(*slot))
    }
}

/// The slots of `context` in a model of 2^`slot_bits` slots.
pub(crate) fn active_slots(context: &Context<'_>, slot_bits: u8) -> Slots {
    let mask = (1_u64 << slot_bits) - 1;
    let mut slots = Slots { slots: [0; MAX_ACTIVE], len: 0 };
    let mut push = |namespace: Namespace, text: &str, number: u8| {
        let seed = u64::from(namespace as u8) << 8 | u64::from(number);
        slots.push((xxh3_64_with_seed(text.as_bytes(), seed) & mask) as u16);
    };
    let (hour, day) = ((context.hour_of_week % 24) as u8, (context.hour_of_week / 24) as u8);
    let path = context.key.as_str();
    push(Namespace::Everything, "", 0);
    push(Namespace::HourOfDay, "", hour);
    push(Namespace::DayOfWeek, "", day);
    if let Some(bucket) = context.frequency_bucket {
        push(Namespace::Frequency, "", bucket);
    }
    // The ends of the path's prefixes: tenant, platform, account, campaign, ad group, creative.
    let mut ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
    let Some(tenant_end) = ends.next() else { return slots };
    if let Some(end) = ends.next() {
        // A platform is the same thing for every tenant, so its text leaves the tenant out.
        let platform = &path[tenant_end + 1..end];
        push(Namespace::Platform, platform, 0);
        push(Namespace::PlatformHour, platform, hour);
        if let Some(bucket) = context.frequency_bucket {
            push(Namespace::PlatformFrequency, platform, bucket);
        }
    }
    if let Some(end) = ends.next() {
        push(Namespace::Account, &path[..end], 0);
    }
    if let Some(end) = ends.next() {
        push(Namespace::Campaign, &path[..end], 0);
        push(Namespace::CampaignHour, &path[..end], hour);
    }
    if let Some(end) = ends.next() {
        push(Namespace::AdGroup, &path[..end], 0);
    }
    if let Some(end) = ends.next() {
        push(Namespace::Creative, &path[..end], 0);
    }
    slots
}

#[cfg(test)]
mod tests {
    use omnify_operators::model::EntityKey;

    use super::*;

    #[test]
    fn a_creative_with_frequency_has_every_feature() {
        let key: EntityKey = "acme/meta/a1/c1/g1/k1".parse().unwrap();
        let context = Context { key: &key, hour_of_week: 167, frequency_bucket: Some(3) };
        let slots: Vec<usize> = active_slots(&context, 16).iter().collect();
        assert_eq!(slots.len(), MAX_ACTIVE);
        let mut distinct = slots.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!(distinct.len(), MAX_ACTIVE, "no namespace repeats another: {slots:?}");
        assert!(active_slots(&context, 4).iter().all(|slot| slot < 16));
    }

    #[test]
    fn a_tenant_has_the_features_of_time() {
        let key: EntityKey = "acme".parse().unwrap();
        let context = Context { key: &key, hour_of_week: 0, frequency_bucket: None };
        assert_eq!(active_slots(&context, 16).iter().count(), 3);
    }

    #[test]
    fn slots_are_part_of_the_format() {
        // A model file written by one build must mean the same in the next: these numbers may
        // only change together with the schema.
        let key: EntityKey = "acme/meta/a1/c1/g1/k1".parse().unwrap();
        let context = Context { key: &key, hour_of_week: 30, frequency_bucket: Some(2) };
        let slots: Vec<usize> = active_slots(&context, 12).iter().collect();
        assert_eq!(slots, [1218, 3830, 550, 789, 1769, 3243, 1716, 2294, 2626, 2236, 705, 4039]);
    }
}
