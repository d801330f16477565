//! Progress bars on a terminal; nothing elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Common;

/// A bar that counts, or nothing when stderr is no terminal.
#[derive(Clone)]
pub struct Bar(Option<ProgressBar>);

/// A bar over bytes, labelled `what`.
pub fn bytes(common: &Common, what: &'static str) -> Bar {
    bar(common, what, "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}")
}

/// A bar over steps, labelled `what`.
pub fn steps(common: &Common, what: &'static str) -> Bar {
    bar(common, what, "{msg} [{bar:40}] {pos}/{len} {eta}")
}

fn bar(common: &Common, what: &'static str, style: &str) -> Bar {
    if common.quiet || !std::io::stderr().is_terminal() {
        return Bar(None);
    }
    let bar = ProgressBar::new(0).with_message(what);
    Bar(Some(match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }))
}

impl Bar {
    /// A bar that shows nothing.
    pub fn hidden() -> Bar {
        Bar(None)
    }

    /// Shows (done, total).
    pub fn at(&self, (done, total): (u64, u64)) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    /// Removes the bar.
    pub fn done(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
