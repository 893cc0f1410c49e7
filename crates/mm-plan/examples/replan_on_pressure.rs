//! Re-plans when another process takes memory of the card, and when it gives it back.
//!
//! Making a plan costs a millisecond, putting it in force moves gigabytes. So a plan is made for every reading of free
//! memory, and put in force only where one of two rules says so:
//!
//! 1. what is in force no longer fits: at once;
//! 2. a new plan would be faster by a twentieth or more, for three readings in a row: then, for the least of the three.
//!
//! Everything else is jitter, and changes nothing. A reserve in the policy keeps jitter from triggering rule 1.
//!
//! ```sh
//! cargo run -p mm-plan --example replan_on_pressure
//! ```

use mm_plan::{
    Activation, Basis, Component, ComponentPlan, Group, Infeasible, Links, Machine, Plan, Policy, Stack, plan,
};
use std::error::Error;

const MIB: u64 = 1 << 20;
const GB: u64 = 1_000_000_000;
const MB: u64 = 1_000_000;

/// Free memory jitters by less than this.
const JITTER: u64 = 256 * MIB;
/// Readings in a row for which a new plan must pay.
const PATIENCE: usize = 3;

/// What a monitor could have seen: MiB that other processes leave to us, with what we hold ourselves.
const READINGS: &[(&str, &[u64])] = &[
    ("The card is ours", &[15_400, 15_310, 15_420, 15_360]),
    ("A game starts", &[11_050, 10_940, 11_100]),
    ("It loads a level", &[7_400, 7_380, 7_450]),
    ("Another process takes nearly all", &[900, 870]),
    ("It leaves, the game goes on", &[11_000, 11_080, 10_990, 11_020]),
    ("The game ends, with a flicker", &[15_300, 11_000, 15_390, 15_350, 15_370, 15_400]),
];

fn main() -> Result<(), Box<dyn Error>> {
    let mut planner = Replanner {
        machine: Machine {
            vram_total: Some(16_384 * MIB),
            ram_available: 64 << 30,
            links: Some(Links { h2d: 12 * GB, staging: Some(8 * GB), disk: None, copy_fixed_ns: 10_000 }),
            ..Machine::default()
        },
        components: z_image(),
        policy: Policy { reserve: JITTER, ..Policy::default() },
        in_force: None,
        paying: Vec::new(),
    };
    for (event, readings) in READINGS {
        println!("\n{event}");
        for free in *readings {
            let before = planner.in_force.clone();
            let decision = planner.observe(free * MIB)?;
            print!("{free:>7} MiB  ");
            match (decision, &planner.in_force) {
                (Decision::Replan(why), Some(after)) => {
                    println!("re-plan: {why}");
                    print_changes(before.as_ref(), after);
                }
                (Decision::Pause(why), _) => println!("pause: {why}"),
                (Decision::Keep(why) | Decision::Replan(why), _) => println!("keep: {why}"),
            }
        }
    }
    Ok(())
}

/// Has a plan in force that fits what is free.
struct Replanner {
    machine: Machine,
    components: Vec<Component>,
    policy: Policy,
    /// `None` while nothing fits.
    in_force: Option<Plan>,
    /// The last readings in a row for which a new plan would have paid.
    paying: Vec<u64>,
}

/// What a reading changes, and why.
enum Decision {
    /// Nothing.
    Keep(String),
    /// There is a new plan in force.
    Replan(String),
    /// Nothing fits: everything goes back to the host.
    Pause(String),
}

impl Replanner {
    /// Takes a reading of free memory. Its errors are those that more free memory would not cure.
    fn observe(&mut self, free: u64) -> Result<Decision, Infeasible> {
        let possible = self.plan_for(free);
        match &self.in_force {
            Some(plan) if need(plan) <= free => match possible {
                Ok(possible) => self.weigh(free, time(&possible), time(plan)),
                Err(_) => Ok(Decision::Keep("it fits, but nothing is left in reserve".into())),
            },
            _ => {
                self.paying.clear();
                let why = match &self.in_force {
                    Some(plan) => format!("what is in force needs {}", mib(need(plan))),
                    None => "nothing is in force".into(),
                };
                match possible {
                    Ok(possible) => {
                        self.in_force = Some(possible);
                        Ok(Decision::Replan(why))
                    }
                    Err(Infeasible::NotNow { smallest, .. }) => {
                        self.in_force = None;
                        Ok(Decision::Pause(format!("{why}, and nothing fits before {} are free", mib(smallest))))
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// Whether a plan that takes `new` ns is worth replacing one that takes `old` ns and still fits.
    fn weigh(&mut self, free: u64, new: u64, old: u64) -> Result<Decision, Infeasible> {
        if new > old - old / 20 {
            self.paying.clear();
            return Ok(Decision::Keep("it fits, and no plan is faster by a twentieth".into()));
        }
        self.paying.push(free);
        if self.paying.len() < PATIENCE {
            let why = format!("{} instead of {}, if it lasts ({} of {PATIENCE})", ms(new), ms(old), self.paying.len());
            return Ok(Decision::Keep(why));
        }
        let least = self.paying.drain(..).min().unwrap_or(free);
        self.in_force = Some(self.plan_for(least)?);
        Ok(Decision::Replan(format!("it lasted for {PATIENCE} readings, of which {} is the least", mib(least))))
    }

    fn plan_for(&self, free: u64) -> Result<Plan, Infeasible> {
        plan(&Machine { vram_free: Some(free), ..self.machine.clone() }, &self.components, &self.policy)
    }
}

/// Device bytes of a plan with its activations, without the reserve.
fn need(plan: &Plan) -> u64 {
    let phases = plan.phases.iter().map(|phase| phase.engine_bytes + phase.activation.map_or(0, |a| a.bytes));
    phases.max().unwrap_or(0)
}

/// Predicted time of a request, nanoseconds. The links are measured, so there is a prediction.
fn time(plan: &Plan) -> u64 {
    plan.predicted.as_ref().map_or(u64::MAX, |predicted| predicted.request_ns)
}

/// Prints what differs between two plans, and why the new one is not richer.
fn print_changes(before: Option<&Plan>, after: &Plan) {
    let indent = " ".repeat(13);
    let mut changed = Vec::new();
    for now in &after.components {
        let (name, is) = (&now.name, placement(now));
        match before.and_then(|plan| plan.component(name)).map(placement) {
            Some(was) if was == is => continue,
            Some(was) => println!("{indent}{name:<13} {was} -> {is}"),
            None => println!("{indent}{name:<13} {is}"),
        }
        changed.push(name);
    }
    let was = before.map_or(String::new(), |plan| format!("{} -> ", ms(time(plan))));
    println!("{indent}request       {was}{}", ms(time(after)));
    // A note whose code ends with `_rejected` says why a component is not kept in a richer way.
    let about_changed = |name: &Option<String>| name.as_ref().is_some_and(|name| changed.contains(&name));
    let mut why = after.notes.iter().filter(|note| note.code.ends_with("_rejected") && about_changed(&note.component));
    if let Some(note) = why.next() {
        println!("{indent}because       {note}");
    }
}

/// A placement in a few words: residents, slots, and whether it outlives its phase.
fn placement(component: &ComponentPlan) -> String {
    let (resident, streamed) = (component.resident_count(), component.streamed_count());
    let stays = if component.keep { "stays" } else { "leaves after its phase" };
    match resident + streamed {
        0 => stays.into(),
        all => format!("{resident}/{all} resident, slots: {}, {stays}", component.slots),
    }
}

/// Z-Image's shape: an encoder, a transformer of 30 blocks that runs nine times, a VAE.
fn z_image() -> Vec<Component> {
    let encoder = Component::blocks("text_encoder", 780 * MB, vec![stack(36, 202 * MB, 600)]);
    let transformer = Component::blocks("transformer", 700 * MB, vec![stack(30, 386 * MB, 11_000)]);
    let vae = Component::whole("vae", 168 * MB);
    vec![active(encoder, 0, 1, 256 * MIB), active(transformer, 1, 9, 1024 * MIB), active(vae, 2, 1, 2400 * MIB)]
}

fn stack(blocks: usize, bytes: u64, compute_us: u64) -> Stack {
    let block = Group { compute_ns: Some(compute_us * 1000), ..Group::of_bytes(bytes) };
    Stack { name: "layers".into(), groups: vec![block; blocks] }
}

fn active(component: Component, phase: u32, passes: u32, activation: u64) -> Component {
    let activation = Some(Activation { bytes: activation, basis: Basis::Measured });
    Component { phase: Some(phase), passes, activation, ..component }
}

fn ms(ns: u64) -> String {
    format!("{} ms", ns.div_ceil(1_000_000))
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(MIB))
}
