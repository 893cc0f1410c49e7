//! A recording in figures.

use super::{Kind, Trace, trace::SCHEMA};
use serde::Serialize;
use std::collections::BTreeMap;

/// What happened in all. Bytes and nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Summary {
    /// Version of the document that this is in JSON.
    pub schema: u32,
    /// From the first event's start to the last one's end.
    pub duration_ns: u64,
    /// Sums over all components.
    #[serde(flatten)]
    pub all: Work,
    /// Of the time in which a copy ran, how much of it a compute ran too.
    pub overlap_permille: u64,
    /// Memory.
    pub peak: PeakBytes,
    /// Events that the recording had no room for; the oldest.
    pub dropped_events: u64,
    /// By component, sorted by name.
    pub components: Vec<ComponentWork>,
}

/// The most engine bytes on the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PeakBytes {
    /// As recorded.
    pub device: u64,
    /// As planned; zero: there was no plan.
    pub planned_device: u64,
    /// The device's budget.
    pub budget: u64,
}

/// What one component did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ComponentWork {
    /// The component's name.
    pub name: String,
    /// Its sums.
    #[serde(flatten)]
    pub work: Work,
}

/// Sums over events; those that run at the same time each count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Work {
    /// Forwards.
    pub passes: u64,
    /// Nanoseconds of forwards.
    pub pass_ns: u64,
    /// Bytes copied to the device.
    pub copied_bytes: u64,
    /// Nanoseconds of copying.
    pub copy_ns: u64,
    /// Bytes gathered in page-locked memory.
    pub staged_bytes: u64,
    /// Nanoseconds of gathering.
    pub stage_ns: u64,
    /// Nanoseconds of computing.
    pub compute_ns: u64,
    /// Nanoseconds that compute stood still waiting for copies.
    pub stall_ns: u64,
    /// Nanoseconds that passes waited to begin.
    pub wait_ns: u64,
}

/// Start and end, nanoseconds.
type Stretch = (u64, u64);

impl Summary {
    pub(super) fn of(trace: &Trace) -> Self {
        let (mut all, mut components) = (Work::default(), BTreeMap::<&str, Work>::new());
        let (mut copies, mut computes) = (Vec::new(), Vec::new());
        for span in &trace.spans {
            let stretch = (span.start_ns, span.end_ns);
            match span.kind {
                Kind::Copy => copies.push(stretch),
                Kind::Compute => computes.push(stretch),
                _ => {}
            }
            all.add(span.kind, stretch, span.bytes);
            let component = trace.labels.get(span.label).map_or("", |(component, _)| component);
            components.entry(component).or_default().add(span.kind, stretch, span.bytes);
        }
        let (first, last) = trace.extent();
        let component = |(name, work): (&str, Work)| ComponentWork { name: name.to_owned(), work };
        Self {
            schema: SCHEMA,
            duration_ns: last - first,
            all,
            overlap_permille: overlap(copies, computes),
            peak: PeakBytes {
                device: trace.levels.iter().map(|level| level.in_use).max().unwrap_or(0),
                planned_device: trace.planned,
                budget: trace.budget,
            },
            dropped_events: trace.dropped,
            components: components.into_iter().map(component).collect(),
        }
    }
}

impl Trace {
    /// The first event's start and the last one's end; zeros where there is none.
    pub(super) fn extent(&self) -> Stretch {
        let spans = self.spans.iter().map(|span| (span.start_ns, span.end_ns));
        let levels = self.levels.iter().map(|level| (level.at_ns, level.at_ns));
        spans.chain(levels).reduce(|all, one| (all.0.min(one.0), all.1.max(one.1))).unwrap_or_default()
    }
}

impl Work {
    fn add(&mut self, kind: Kind, (start, end): Stretch, bytes: u64) {
        let time = match kind {
            Kind::Copy => {
                self.copied_bytes = self.copied_bytes.saturating_add(bytes);
                &mut self.copy_ns
            }
            Kind::Stage => {
                self.staged_bytes = self.staged_bytes.saturating_add(bytes);
                &mut self.stage_ns
            }
            Kind::Compute => &mut self.compute_ns,
            Kind::Stall => &mut self.stall_ns,
            Kind::Wait => &mut self.wait_ns,
            Kind::Pass => {
                self.passes += 1;
                &mut self.pass_ns
            }
            Kind::Allocate | Kind::Free => return,
        };
        *time = time.saturating_add(end.saturating_sub(start));
    }
}

/// Permille of the time of `copies` in which a stretch of `computes` runs too.
fn overlap(copies: Vec<Stretch>, computes: Vec<Stretch>) -> u64 {
    let (copies, computes) = (union(copies), union(computes));
    let total: u64 = copies.iter().map(|(start, end)| end - start).sum();
    let (mut both, mut next) = (0, 0);
    for &(start, end) in &copies {
        while computes.get(next).is_some_and(|compute| compute.1 <= start) {
            next += 1;
        }
        for compute in computes[next..].iter().take_while(|compute| compute.0 < end) {
            both += end.min(compute.1) - start.max(compute.0);
        }
    }
    u64::try_from(u128::from(both) * 1000 / u128::from(total.max(1))).unwrap_or(0)
}

/// The same time without overlaps, in order.
fn union(mut stretches: Vec<Stretch>) -> Vec<Stretch> {
    stretches.sort_unstable();
    let mut merged: Vec<Stretch> = Vec::with_capacity(stretches.len());
    for (start, end) in stretches {
        match merged.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => merged.push((start, end)),
        }
    }
    merged
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_counts_each_moment_once() {
        assert_eq!(overlap(vec![], vec![]), 0);
        assert_eq!(overlap(vec![(0, 10)], vec![]), 0);
        assert_eq!(overlap(vec![(0, 10)], vec![(0, 10)]), 1000);
        assert_eq!(overlap(vec![(0, 10), (0, 10)], vec![(5, 20), (5, 6)]), 500);
        assert_eq!(overlap(vec![(0, 4), (6, 10)], vec![(3, 7), (9, 30)]), 375);
        assert_eq!(overlap(vec![(0, 100)], vec![(10, 20), (30, 40), (100, 110)]), 200);
        assert_eq!(overlap(vec![(20, 30), (0, 10)], vec![(25, 26), (5, 6)]), 100);
    }
}
