//! Why a row was refused: a closed set of stable codes.

/// Reason of a dead letter. The code is part of the history's contract: never rename one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Not a row of the format (broken JSON, an open quote).
    Malformed,
    /// Another number of columns than the header.
    WrongColumns,
    /// Longer than `validation.line_bytes_max`.
    LineTooLong,
    /// The input ends inside the row.
    Truncated,
    /// A mapped column is not UTF-8.
    InvalidUtf8,
    /// A required field is empty or absent.
    MissingField,
    /// Not a number, or not a whole one where one is needed.
    BadNumber,
    /// NaN or infinite.
    NotFinite,
    /// A negative amount where none can be.
    Negative,
    /// A number or time too large to be true.
    OutOfRange,
    /// A time that the mapping's format does not read.
    BadTime,
    /// Later than the clock and the allowed skew.
    FutureTime,
    /// A kind of row or event that the mapping does not name.
    UnknownKind,
    /// A tenant that `validation.tenants` does not list.
    UnknownTenant,
    /// A name that cannot be a segment of an entity path.
    BadName,
    /// A report row with more clicks than impressions.
    ClicksOverImpressions,
    /// A report row whose interval does not end after it starts.
    EmptyInterval,
    /// A report row of an attribution window that cannot be read.
    UnknownAttribution,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Reason; 18] = [
        Reason::Malformed,
        Reason::WrongColumns,
        Reason::LineTooLong,
        Reason::Truncated,
        Reason::InvalidUtf8,
        Reason::MissingField,
        Reason::BadNumber,
        Reason::NotFinite,
        Reason::Negative,
        Reason::OutOfRange,
        Reason::BadTime,
        Reason::FutureTime,
        Reason::UnknownKind,
        Reason::UnknownTenant,
        Reason::BadName,
        Reason::ClicksOverImpressions,
        Reason::EmptyInterval,
        Reason::UnknownAttribution,
    ];

    /// The stable code, as written to the history.
    pub const fn code(self) -> &'static str {
        match self {
            Reason::Malformed => "malformed",
            Reason::WrongColumns => "wrong_columns",
            Reason::LineTooLong => "line_too_long",
            Reason::Truncated => "truncated",
            Reason::InvalidUtf8 => "invalid_utf8",
            Reason::MissingField => "missing_field",
            Reason::BadNumber => "bad_number",
            Reason::NotFinite => "not_finite",
            Reason::Negative => "negative",
            Reason::OutOfRange => "out_of_range",
            Reason::BadTime => "bad_time",
            Reason::FutureTime => "future_time",
            Reason::UnknownKind => "unknown_kind",
            Reason::UnknownTenant => "unknown_tenant",
            Reason::BadName => "bad_name",
            Reason::ClicksOverImpressions => "clicks_over_impressions",
            Reason::EmptyInterval => "empty_interval",
            Reason::UnknownAttribution => "unknown_attribution",
        }
    }
}

/// Why one row was refused, in a code and in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reject {
    /// The code.
    pub reason: Reason,
    /// The words: the field, what was found, what was expected.
    pub detail: String,
}

impl Reject {
    /// A refusal with its words.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Reject {
        Reject { reason, detail: detail.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique() {
        let codes: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
    }
}
