//! Attribution windows: for how many days after a click, an engagement or a view a platform
//! attributes a conversion to an ad.
//!
//! A platform states the conversions of one interval under several windows, and those overlap: a
//! conversion a day after a click is in `7d_click` as well as in `1d_click`. So they are never
//! added; one window of an account feeds its features (`operators/src/restate.rs` says how).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::EntityKey;

/// An attribution window: days after each kind of touch, 0 where that kind does not count.
///
/// Written as the platforms do: `7d_click`, `1d_view`, `1d_ev` (engaged view; `engagement` is read
/// alike), `7d_click_1d_view`; `default` or nothing for the one that a platform does not name.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Attribution {
    /// Days after a click.
    pub click_days: u8,
    /// Days after an engagement.
    pub engagement_days: u8,
    /// Days after a view.
    pub view_days: u8,
}

/// A text that is no attribution window.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no attribution window: write `7d_click`, `1d_view`, `1d_ev` or several of them joined \
     by `_`, each kind once, with 1 to 255 days; or `default`"
)]
pub struct AttributionError(pub String);

impl Attribution {
    /// The window that a platform does not name.
    pub const DEFAULT: Attribution =
        Attribution { click_days: 0, engagement_days: 0, view_days: 0 };

    /// The window as one number, for records; 0 is the default.
    pub const fn code(self) -> u32 {
        u32::from_le_bytes([self.click_days, self.engagement_days, self.view_days, 0])
    }

    /// The window with this number, if there is one.
    pub const fn of_code(code: u32) -> Option<Attribution> {
        let [click_days, engagement_days, view_days, rest] = code.to_le_bytes();
        match rest {
            0 => Some(Attribution { click_days, engagement_days, view_days }),
            _ => None,
        }
    }
}

impl FromStr for Attribution {
    type Err = AttributionError;

    fn from_str(text: &str) -> Result<Attribution, AttributionError> {
        let mut window = Attribution::DEFAULT;
        if text.is_empty() || text == "default" {
            return Ok(window);
        }
        let error = || AttributionError(text.chars().take(60).collect());
        let mut parts = text.split('_');
        while let Some(days) = parts.next() {
            let of = match parts.next() {
                Some("click") => &mut window.click_days,
                Some("ev" | "engagement") => &mut window.engagement_days,
                Some("view") => &mut window.view_days,
                _ => return Err(error()),
            };
            let days = days.strip_suffix('d').filter(|days| !days.starts_with(['+', '0']));
            let days = days.and_then(|days| days.parse().ok()).ok_or_else(error)?;
            if std::mem::replace(of, days) != 0 {
                return Err(error());
            }
        }
        Ok(window)
    }
}

impl fmt::Display for Attribution {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Attribution::DEFAULT {
            return f.write_str("default");
        }
        let touches =
            [(self.click_days, "click"), (self.engagement_days, "ev"), (self.view_days, "view")];
        let named = touches.iter().filter(|(days, _)| *days != 0);
        named.enumerate().try_for_each(|(at, (days, touch))| {
            let joint = if at == 0 { "" } else { "_" };
            write!(f, "{joint}{days}d_{touch}")
        })
    }
}

/// Which window feeds the features of some accounts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributionRule {
    /// Accounts, as in [`EntityKey::is_covered_by`].
    pub accounts: String,
    /// Their window.
    pub window: Attribution,
}

impl AttributionRule {
    /// The window that feeds the features of `entity`: that of the first rule that covers it.
    pub fn window_of(rules: &[AttributionRule], entity: &EntityKey) -> Attribution {
        let rule = rules.iter().find(|rule| entity.is_covered_by(&rule.accounts));
        rule.map_or(Attribution::DEFAULT, |rule| rule.window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_read_as_the_platforms_write_them() {
        let read = |text: &str| text.parse::<Attribution>();
        for text in [
            "default",
            "7d_click",
            "1d_view",
            "1d_ev",
            "7d_click_1d_view",
            "30d_click_30d_ev_1d_view",
        ] {
            assert_eq!(read(text).unwrap().to_string(), text);
        }
        assert_eq!(read(""), Ok(Attribution::DEFAULT));
        assert_eq!(read("1d_view_7d_click"), read("7d_click_1d_view"), "the order does not count");
        assert_eq!(read("30d_engagement"), read("30d_ev"));
        for text in [
            "7d",
            "click",
            "d_click",
            "7_click",
            "0d_click",
            "07d_click",
            "+7d_click",
            "256d_click",
            "7d_click_",
            "_7d_click",
            "7d_click_1d_click",
            "7d_Click",
            "7d_click 1d_view",
            "-1d_view",
            "7d_tap",
            "é",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn codes_come_back() {
        for text in ["default", "7d_click", "255d_click_255d_ev_255d_view"] {
            let window: Attribution = text.parse().unwrap();
            assert_eq!(Attribution::of_code(window.code()), Some(window));
        }
        assert_eq!(Attribution::DEFAULT.code(), 0);
        assert_eq!(Attribution::of_code(1 << 24), None);
    }

    #[test]
    fn the_first_rule_that_covers_an_account_counts() {
        let rule = |accounts: &str, window: &str| AttributionRule {
            accounts: accounts.to_owned(),
            window: window.parse().unwrap(),
        };
        let rules =
            [rule("acme/meta/1", "1d_click"), rule("*/meta", "7d_click"), rule("acme", "1d_view")];
        let of = |key: &str| AttributionRule::window_of(&rules, &key.parse().unwrap()).to_string();
        assert_eq!(of("acme/meta/1/c/g/x"), "1d_click");
        assert_eq!(of("acme/meta/2/c/g/x"), "7d_click");
        assert_eq!(of("acme/google/2/c/g/x"), "1d_view");
        assert_eq!(of("other/google/2/c/g/x"), "default");
    }
}
