//! Progress bars on a terminal; nothing elsewhere.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};

use crate::cli::Common;

/// A bar that counts bytes, or nothing when stderr is no terminal.
#[derive(Clone)]
pub struct Bar(Option<ProgressBar>);

/// A bar over bytes, labelled `what`.
pub fn bytes(common: &Common, what: &'static str) -> Bar {
    if common.quiet || !std::io::stderr().is_terminal() {
        return Bar(None);
    }
    let bar = ProgressBar::new(0).with_message(what);
    let style = "{msg} [{bar:40}] {bytes}/{total_bytes} {bytes_per_sec} {eta}";
    Bar(Some(match ProgressStyle::with_template(style) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }))
}

impl Bar {
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
