//! A scheduler of several cards that asks `mm_plan::plan` what each placement would cost.
//!
//! One host has four cards that share its RAM. Pipelines come and go. For each that comes, every card makes an offer: a
//! plan for what is free on that card now, and the time that it predicts. The cheapest offer wins. A pipeline that no
//! card can take now waits until something leaves. One that no card could ever take is refused, with the smallest
//! budget that would do.
//!
//! Nothing runs here and no time passes: predictions are all that a scheduler needs.
//!
//! ```sh
//! cargo run -p mm-plan --example multi_gpu_scheduler
//! ```

use mm_plan::{Activation, Basis, Component, Group, Infeasible, Links, Machine, Plan, Policy, Stack, plan};
use std::error::Error;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;
const GB: u64 = 1_000_000_000;
const MB: u64 = 1_000_000;
/// As wide as the table's first column.
const INDENT: &str = "                  ";

fn main() -> Result<(), Box<dyn Error>> {
    let mut host = Host {
        ram: 96 * GIB,
        cards: vec![
            Card::new("24 GiB", 24 * GIB, 25 * GB, 1000),
            Card::new("16 GiB", 16 * GIB, 25 * GB, 1400),
            Card::new("12 GiB", 12 * GIB, 12 * GB, 1900),
            Card::new("8 GiB", 8 * GIB, 12 * GB, 2800),
        ],
        waiting: Vec::new(),
    };
    println!("What each card offers: the time of a request, after one request of each neighbour; * is the least.");
    println!("+ arrives, - leaves, ? has waited\n");
    print!("{:<18}", "");
    host.cards.iter().for_each(|card| print!("{:>10}", card.name));
    println!("   decision");

    host.arrive(flux("flux-a"))?;
    host.arrive(z_image("z-image-a"))?;
    host.arrive(sdxl("sdxl-a"))?;
    host.arrive(sdxl("sdxl-b"))?;
    host.arrive(one_piece("one-piece"))?;
    host.arrive(flux("flux-b"))?;
    host.arrive(wan("wan-a"))?;
    host.arrive(z_image("z-image-b"))?;
    host.leave("sdxl-a")?;
    host.leave("flux-a")?;
    host.leave("z-image-b")?;

    println!("\nAt the end:");
    for card in &host.cards {
        let tenants: Vec<_> = card.tenants.iter().map(|t| format!("{} ({})", t.name, size(t.device))).collect();
        println!("  {:<7} {:>9} free   {}", card.name, size(card.free()), tenants.join(", "));
    }
    println!("  RAM     {:>9} not page-locked of {}", size(host.ram_free()), size(host.ram));
    let waiting: Vec<_> = host.waiting.iter().map(|p| p.name).collect();
    println!("  waiting: {}", if waiting.is_empty() { "none".into() } else { waiting.join(", ") });
    Ok(())
}

/// The cards of one host, and the RAM they share.
struct Host {
    ram: u64,
    cards: Vec<Card>,
    /// Pipelines that fit some card, but not what is free now; the oldest first.
    waiting: Vec<Pipeline>,
}

struct Card {
    name: &'static str,
    vram: u64,
    /// From page-locked memory, bytes per second.
    h2d: u64,
    /// Compute time relative to the fastest card, permille.
    slowness: u64,
    tenants: Vec<Tenant>,
}

/// What runs on a card, and what it holds while it does.
struct Tenant {
    name: &'static str,
    /// Weights, slots and activations on the device.
    device: u64,
    /// Page-locked bytes of the shared RAM.
    host: u64,
    request_ns: u64,
}

struct Pipeline {
    name: &'static str,
    /// With compute times measured on the fastest card.
    components: Vec<Component>,
}

/// What a card would do with a pipeline.
struct Offer {
    plan: Plan,
    request_ns: u64,
    /// One request of each neighbour: requests on one card take turns.
    wait_ns: u64,
}

impl Host {
    fn ram_free(&self) -> u64 {
        self.ram - self.cards.iter().flat_map(|card| &card.tenants).map(|tenant| tenant.host).sum::<u64>()
    }

    fn arrive(&mut self, pipeline: Pipeline) -> Result<(), Box<dyn Error>> {
        if let Some(pipeline) = self.admit("+", pipeline)? {
            self.waiting.push(pipeline);
        }
        Ok(())
    }

    /// Frees what a pipeline held, and offers it to those who wait.
    fn leave(&mut self, name: &str) -> Result<(), Box<dyn Error>> {
        self.cards.iter_mut().for_each(|card| card.tenants.retain(|tenant| tenant.name != name));
        println!("- {name}");
        for pipeline in std::mem::take(&mut self.waiting) {
            if let Some(pipeline) = self.admit("?", pipeline)? {
                self.waiting.push(pipeline);
            }
        }
        Ok(())
    }

    /// Puts a pipeline where it costs least and prints the decision. Returns it where it has to wait.
    fn admit(&mut self, event: &str, pipeline: Pipeline) -> Result<Option<Pipeline>, Box<dyn Error>> {
        let mut offers = Vec::new();
        for card in &self.cards {
            offers.push(card.offer(&pipeline, self.ram_free())?);
        }
        // Of equal offers the first card's wins, so the same events always give the same decisions.
        let best = offers.iter().enumerate().filter_map(|(at, offer)| Some((offer.as_ref().ok()?.total(), at))).min();
        print!("{:<18}", format!("{event} {}", pipeline.name));
        for (at, offer) in offers.iter().enumerate() {
            let mark = if best.is_some_and(|(_, best)| best == at) { "*" } else { "" };
            let cell = match offer {
                Ok(offer) => format!("{mark}{}", seconds(offer.total())),
                Err(Infeasible::NeverFits { .. }) => "never".into(),
                Err(_) => "not now".into(),
            };
            print!("{cell:>10}");
        }
        if let Some((_, at)) = best
            && let Ok(offer) = offers.swap_remove(at)
        {
            println!("   {}\n{INDENT}{}", self.cards[at].name, offer.describe());
            let (device, host) = (offer.device(), offer.plan.peak.host);
            self.cards[at].tenants.push(Tenant { name: pipeline.name, device, host, request_ns: offer.request_ns });
            return Ok(None);
        }
        Ok(refuse(pipeline, &offers))
    }
}

/// No card has room. Whoever fits one of them waits; `NotNow` says so, and how much has to be freed.
fn refuse(pipeline: Pipeline, offers: &[Result<Offer, Infeasible>]) -> Option<Pipeline> {
    let errors = || offers.iter().filter_map(|offer| offer.as_ref().err());
    let missing = errors().filter_map(|error| match error {
        Infeasible::NotNow { have, smallest, .. } => Some(smallest.saturating_sub(*have)),
        _ => None,
    });
    if let Some(missing) = missing.min() {
        println!("   waits\n{INDENT}{} more free on one card would do", size(missing));
        return Some(pipeline);
    }
    let smallest = errors().filter_map(|error| match error {
        Infeasible::NeverFits { component, smallest, .. } => Some((*smallest, component)),
        _ => None,
    });
    match smallest.min() {
        Some((smallest, component)) => {
            println!("   refused\n{INDENT}{component} needs a card with {} free", size(smallest));
        }
        None => println!("   refused"),
    }
    None
}

impl Card {
    fn new(name: &'static str, total: u64, h2d: u64, slowness: u64) -> Self {
        // The driver and a context take their share before anything is loaded.
        Self { name, vram: total - 512 * MIB, h2d, slowness, tenants: Vec::new() }
    }

    fn free(&self) -> u64 {
        self.vram - self.tenants.iter().map(|tenant| tenant.device).sum::<u64>()
    }

    /// Asks the planner. The inner error says why this card cannot take the pipeline; the outer one is a broken input.
    fn offer(&self, pipeline: &Pipeline, ram_free: u64) -> Result<Result<Offer, Infeasible>, Box<dyn Error>> {
        let machine = Machine {
            vram_total: Some(self.vram),
            ram_available: ram_free,
            links: Some(Links { h2d: self.h2d, staging: Some(8 * GB), disk: None, copy_fixed_ns: 10_000 }),
            ..Machine::default()
        };
        let mut components = pipeline.components.clone();
        for group in components.iter_mut().flat_map(|c| &mut c.stacks).flat_map(|s| &mut s.groups) {
            group.compute_ns = group.compute_ns.map(|ns| ns * self.slowness / 1000);
        }
        let plan_within = |vram: u64| {
            let machine = Machine { vram_free: Some(vram), ..machine.clone() };
            plan(&machine, &components, &Policy::default())
        };
        let mut best = match plan_within(self.free()) {
            Ok(plan) => plan,
            Err(error @ Infeasible::BadInput { .. }) => return Err(error.into()),
            Err(infeasible) => return Ok(Err(infeasible)),
        };
        // The fastest plan takes whatever buys a millisecond. A neighbour may need it more: find the least memory with
        // which a request takes a twentieth longer at the most. More memory never makes a plan slower: halving works.
        let limit = predicted(&best)? / 20 * 21;
        let (mut too_little, mut enough) = (0, self.free());
        while enough - too_little > 64 * MIB {
            let middle = too_little.midpoint(enough);
            match plan_within(middle) {
                Ok(plan) if predicted(&plan)? <= limit => (enough, best) = (middle, plan),
                _ => too_little = middle,
            }
        }
        let wait_ns = self.tenants.iter().map(|tenant| tenant.request_ns).sum();
        Ok(Ok(Offer { request_ns: predicted(&best)?, plan: best, wait_ns }))
    }
}

/// Predicted time of a request, nanoseconds.
fn predicted(plan: &Plan) -> Result<u64, Box<dyn Error>> {
    Ok(plan.predicted.as_ref().ok_or("without measured links there is no prediction")?.request_ns)
}

impl Offer {
    fn total(&self) -> u64 {
        self.request_ns + self.wait_ns
    }

    /// Weights and slots as planned, and activations on top, in the phase that needs most of both.
    fn device(&self) -> u64 {
        let phases = self.plan.phases.iter().map(|p| p.engine_bytes + p.activation.map_or(0, |a| a.bytes));
        phases.max().unwrap_or(0)
    }

    /// What it takes, what streams, and what a request waits for.
    fn describe(&self) -> String {
        let mut parts = vec![format!("{} on the card, {} page-locked", size(self.device()), size(self.plan.peak.host))];
        for component in self.plan.components.iter().filter(|c| c.streamed_count() > 0) {
            let all = component.resident_count() + component.streamed_count();
            parts.push(format!("{} {}/{all} streamed", component.name, component.streamed_count()));
        }
        let components = self.plan.predicted.iter().flat_map(|predicted| &predicted.components);
        let (load, stall) = components.fold((0, 0), |(load, stall), c| (load + c.load_ns, stall + c.stall_ns));
        for (what, ns) in [("loads for", load), ("stalls for", stall), ("waits for neighbours for", self.wait_ns)] {
            if ns >= 50_000_000 {
                parts.push(format!("{what} {}", seconds(ns)));
            }
        }
        parts.join(", ")
    }
}

fn flux(name: &'static str) -> Pipeline {
    let t5 = stack("block", 24, 387 * MB, 900);
    let double = stack("transformer_blocks", 19, 680 * MB, 15_800);
    let single = stack("single_transformer_blocks", 38, 283 * MB, 6_600);
    let components = vec![
        active(0, 1, 64 * MIB, Component::whole("text_encoder", 246 * MB)),
        active(0, 1, 128 * MIB, Component::blocks("text_encoder_2", 264 * MB, vec![t5])),
        active(1, 28, 1200 * MIB, Component::blocks("transformer", 120 * MB, vec![double, single])),
        active(2, 1, 2400 * MIB, Component::whole("vae", 168 * MB)),
    ];
    Pipeline { name, components }
}

fn z_image(name: &'static str) -> Pipeline {
    let (qwen, layers) = (stack("layers", 36, 202 * MB, 600), stack("layers", 30, 386 * MB, 11_000));
    let components = vec![
        active(0, 1, 256 * MIB, Component::blocks("text_encoder", 780 * MB, vec![qwen])),
        active(1, 9, 1024 * MIB, Component::blocks("transformer", 700 * MB, vec![layers])),
        active(2, 1, 2400 * MIB, Component::whole("vae", 168 * MB)),
    ];
    Pipeline { name, components }
}

fn sdxl(name: &'static str) -> Pipeline {
    let layers = stack("transformer_layers", 60, 70 * MB, 1_100);
    let components = vec![
        active(0, 2, 64 * MIB, Component::whole("text_encoder", 246 * MB)),
        active(0, 2, 64 * MIB, Component::whole("text_encoder_2", 1390 * MB)),
        active(1, 30, 900 * MIB, Component::blocks("unet", 935 * MB, vec![layers])),
        active(2, 1, 2400 * MIB, Component::whole("vae", 168 * MB)),
    ];
    Pipeline { name, components }
}

/// A video model: its activations alone are larger than the small cards.
fn wan(name: &'static str) -> Pipeline {
    let (umt5, blocks) = (stack("block", 24, 387 * MB, 900), stack("blocks", 40, 700 * MB, 150_000));
    let components = vec![
        active(0, 1, 128 * MIB, Component::blocks("text_encoder", 2100 * MB, vec![umt5])),
        active(1, 30, 11 * GIB, Component::blocks("transformer", 350 * MB, vec![blocks])),
        active(2, 1, 6 * GIB, Component::whole("vae", 508 * MB)),
    ];
    Pipeline { name, components }
}

/// A model in one indivisible piece, larger than every card.
fn one_piece(name: &'static str) -> Pipeline {
    Pipeline { name, components: vec![active(0, 20, 1024 * MIB, Component::whole("transformer", 28 * GB))] }
}

fn stack(name: &str, blocks: usize, bytes: u64, compute_us: u64) -> Stack {
    let block = Group { compute_ns: Some(compute_us * 1000), ..Group::of_bytes(bytes) };
    Stack { name: name.into(), groups: vec![block; blocks] }
}

fn active(phase: u32, passes: u32, activation: u64, component: Component) -> Component {
    let activation = Some(Activation { bytes: activation, basis: Basis::Declared });
    Component { phase: Some(phase), passes, activation, ..component }
}

fn seconds(ns: u64) -> String {
    format!("{:.1} s", ns as f64 / 1e9)
}

fn size(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / GIB as f64)
}
