//! How a device with streams of its own tells what its work took.

use crate::timeline::{Event, Kind, Label};

/// A span that was begun on a [`Stopwatch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "end it"]
pub struct Ticket(pub usize);

/// A device's own clock: it times copies on the lane and, between `begin` and `end`, the compute stream, where the host only
/// enqueues meanwhile. It has one reader at a time, and measures nothing until that one starts it.
///
/// Nobody waits for it, and no work fails because of it: what it can't tell is missing.
pub trait Stopwatch: Send + Sync {
    /// Takes it; `false`: somebody else has it.
    fn claim(&self) -> bool;

    /// Stops it and gives it back.
    fn release(&self);

    /// Measures from now on, with room for that many spans that were not read yet. Beyond that spans are lost, and with them
    /// the passes that they lie in.
    fn start(&self, spans: usize);

    /// Measures no more; what was not read is forgotten.
    fn stop(&self);

    /// A span begins where the compute stream is now; `None`: it is not measured.
    fn begin(&self, kind: Kind, label: Label) -> Option<Ticket>;

    /// A span ends where the compute stream is now; where it does not count it is forgotten. A pass of which a span was lost
    /// does not count.
    fn end(&self, ticket: Ticket, counts: bool);

    /// Moves the spans that have come to their end to the end of `into`: those of each stream in the order in which they ended, on the
    /// device's clock in nanoseconds, copies first. Never waits. What ended the measuring, told once.
    fn read(&self, into: &mut Vec<Event>) -> Option<String>;
}
