//! Deletes what no head lists: what a start that ended early had copied, and what was replaced when
//! nobody was left to delete it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::head::HISTORY;
use super::{Head, ObjectsError, Remote, fetch};

/// How long objects that are not listed any more stay, for readers of a head before.
pub const GRACE: Duration = Duration::from_secs(3_600);

/// Deletes objects of earlier epochs and of the history being written that `head` does not list and
/// that are older than `grace` by the store's own clock; returns how many. A listing that is
/// incomplete only leaves some for another time.
pub async fn sweep(remote: &Remote, head: &Head, grace: Duration) -> Result<usize, ObjectsError> {
    let mut listed: BTreeSet<&str> = BTreeSet::new();
    listed.extend(head.files.values().flatten().map(|piece| piece.key.as_str()));
    let snapshots: Vec<&str> = head.snapshots().iter().map(|(_, piece)| piece.folder()).collect();
    let run = head.run.as_ref().map(|run| format!("{HISTORY}/{run}/"));
    let mut parts = BTreeSet::new();
    if let Some(run) = &run
        && let Some([piece]) =
            head.files.get(&format!("{run}{}", fetch::MANIFEST)).map(Vec::as_slice)
    {
        let of = fetch::parts(remote, piece).await?;
        parts.extend(of.into_iter().map(|part| format!("{run}{}", part.file)));
    }
    let all = remote.list("").await?;
    let Some(now) = all.iter().map(|(_, meta)| meta.last_modified).max() else { return Ok(0) };
    let earlier = |key: &str| {
        let epoch = key.strip_prefix('e').and_then(|rest| rest.split_once('/')?.0.parse().ok());
        epoch.is_some_and(|epoch: u64| epoch < head.epoch)
    };
    let over = all.iter().filter(|(key, meta)| {
        let age = now.signed_duration_since(meta.last_modified).to_std().unwrap_or_default();
        let known = listed.contains(key.as_str())
            || parts.contains(key)
            || snapshots.iter().any(|folder| key.starts_with(folder));
        let ours = earlier(key) || run.as_ref().is_some_and(|run| key.starts_with(run));
        ours && !known && age > grace
    });
    let over: Vec<String> = over.map(|(key, _)| key.clone()).collect();
    Ok(over.len() - remote.delete(&over).await)
}
