//! What a run did.

use crate::calibrate;
use crate::exit::Failure;
use crate::lora::{self, Applied};
use crate::memory::Peaks;
use crate::plan_table::sentence;
use crate::size::show;
use crate::table::{Table, print, print_document, time};
use mm_cache::ContentId;
use mm_candle::Manager;
use mm_engine::ModuleStats;
use mm_plan::{Note, Plan, Strategy};
use serde::Serialize;
use std::path::Path;
use std::time::Duration;

/// What a run did. Bytes and nanoseconds, but for `seconds`.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    schema: u32,
    image: String,
    image_blake3: String,
    strategy: Strategy,
    seconds: f64,
    passes: Vec<Passes>,
    peak: Peak,
    copied_bytes: u64,
    stall_ns: u64,
    cache: Cache,
    loras: Vec<Applied>,
    notes: Vec<Note>,
    /// What was run; can be given to another run.
    plan: Plan,
}

#[derive(Debug, Serialize)]
struct Passes {
    component: String,
    count: u64,
    median_ns: u64,
    copied_bytes: u64,
    stall_ns: u64,
}

#[derive(Debug, Serialize)]
struct Peak {
    device: u64,
    planned_device: u64,
    budget: u64,
    activation: u64,
    host_anon: u64,
}

#[derive(Debug, Serialize)]
struct Cache {
    hits: u64,
    misses: u64,
    waits: u64,
    evictions: u64,
    /// What its entries weigh, as stored.
    bytes: u64,
    /// Of that, read in another file that holds the same.
    shared_bytes: u64,
}

impl Report {
    pub(crate) fn new(
        image: &Path,
        png: &[u8],
        manager: &Manager,
        (plan, planned): (&Plan, u64),
        sampled: Option<Peaks>,
        took: Duration,
    ) -> Self {
        let (memory, cache) = (manager.memory(), manager.cache().stats());
        let stats = manager.stats();
        let said = |(name, stats): &(String, ModuleStats)| {
            let note = |text: &String| Note::new("component", &[], text.as_str()).about(name);
            stats.notes.iter().map(note).collect::<Vec<_>>()
        };
        let mut notes = plan.notes.clone();
        notes.extend(stats.iter().flat_map(said));
        let passes: Vec<Passes> = stats.into_iter().map(|(name, stats)| Passes::of(name, &stats)).collect();
        notes.extend(calibrate::notes(manager));
        if sampled.is_none() {
            let text =
                "activation and host memory are not known: this system does not tell a process's anonymous memory.";
            notes.push(Note::new("activation_unknown", &[], text));
        }
        let sampled = sampled.unwrap_or_default();
        Self {
            schema: 1,
            image: image.to_string_lossy().into_owned(),
            image_blake3: ContentId::of(png).to_string(),
            strategy: plan.strategy,
            seconds: took.as_secs_f64(),
            peak: Peak {
                device: memory.peak,
                planned_device: planned,
                budget: memory.budget,
                activation: sampled.activation,
                host_anon: sampled.anonymous,
            },
            copied_bytes: passes.iter().map(|passes| passes.copied_bytes).sum(),
            stall_ns: passes.iter().map(|passes| passes.stall_ns).sum(),
            passes,
            cache: Cache {
                hits: cache.hits,
                misses: cache.misses,
                waits: cache.waits,
                evictions: cache.evictions,
                bytes: cache.bytes,
                shared_bytes: manager.weights().stats().bytes,
            },
            loras: Vec::new(),
            notes,
            plan: plan.clone(),
        }
    }

    /// A run with these LoRAs.
    pub(crate) fn of(mut self, loras: Vec<Applied>) -> Self {
        self.notes.extend(lora::notes(&loras));
        Self { loras, ..self }
    }

    pub(crate) fn print(&self, json: bool) -> Result<(), Failure> {
        if json {
            return print_document(self);
        }
        print(self.table())
    }

    fn table(&self) -> String {
        let mut passes = Table::new(&["component", ">passes", ">median", ">copied", ">stalled"]);
        for part in &self.passes {
            let count = part.count.to_string();
            passes.row([
                part.component.clone(),
                count,
                time(part.median_ns),
                show(part.copied_bytes),
                time(part.stall_ns),
            ]);
        }
        let notes: String = self.notes.iter().map(|note| format!("\n- {}", sentence(note))).collect();
        format!(
            "{} in {:.1} s by {}\nblake3 {}\n\non the device  {} at most, planned {}, budget {}\nactivation     {}\n\
             host           {} anonymous at most\n\n{passes}{notes}",
            self.image,
            self.seconds,
            self.strategy,
            self.image_blake3,
            show(self.peak.device),
            show(self.peak.planned_device),
            show(self.peak.budget),
            show(self.peak.activation),
            show(self.peak.host_anon),
        )
    }
}

impl Passes {
    fn of(component: String, stats: &ModuleStats) -> Self {
        Self {
            component,
            count: stats.passes,
            median_ns: median(stats.pass_ns.clone()),
            copied_bytes: stats.copied_bytes,
            stall_ns: stats.stall_ns,
        }
    }
}

/// The middle one, the later of two; zero of none.
fn median(mut values: Vec<u64>) -> u64 {
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        for (values, middle) in [(vec![], 0), (vec![7], 7), (vec![9, 1], 9), (vec![3, 1, 2], 2)] {
            assert_eq!(median(values), middle);
        }
    }
}
