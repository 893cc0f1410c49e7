//! `mm plan`: decides, and says why.

use crate::args::{ComputeType, Count, DeviceName, PlanArgs};
use crate::exit::{Failure, Stage};
use crate::size::show;
use crate::spec;
use crate::table::{Table, print, print_document};
use mm_diffusion::{Folder, LoadOptions};
use mm_plan::{Component, DType, Machine, Plan, Policy, Spec};
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(args: &PlanArgs) -> Result<ExitCode, Failure> {
    match (&args.path, &args.spec) {
        (Some(path), _) => {
            let plan = decide(from_checkpoint(path, args)?, args)?;
            answer(&plan, args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        (None, Some(file)) => spec::run(file, args),
        (None, None) => Err(Failure::usage("PATH", "name a checkpoint, or a spec by --spec")),
    }
}

/// A machine and the components of a checkpoint: this machine with its first GPU and what the headers say; or, for a
/// device that is named, exactly what a run on it would plan.
fn from_checkpoint(path: &Path, args: &PlanArgs) -> Result<Spec, Failure> {
    let report = mm_probe::probe();
    let (machine, components) = match args.device {
        None => (report.machine(None), mm_probe::inspect(path, args.dtype.map(Into::into))?.to_plan()),
        Some(device) => {
            let machine = match device {
                DeviceName::Cpu => report.host_machine(args.vram.or(args.ram)),
                DeviceName::Cuda(index) => report.machine(usize::try_from(index).ok()),
            };
            (machine, describe(path, &load_options(device, args.dtype)?)?)
        }
    };
    Ok(Spec { schema: 1, machine, components, policy: Policy::default() })
}

fn describe(path: &Path, options: &LoadOptions) -> Result<Vec<Component>, Failure> {
    Folder::open(path)
        .and_then(|folder| mm_diffusion::describe(&folder, options))
        .map_err(|error| Failure::of_pipeline(error, Stage::Load))
}

/// A pipeline on this device: f32 on the CPU and bf16 on CUDA, unless a type is given.
pub(crate) fn load_options(device: DeviceName, dtype: Option<ComputeType>) -> Result<LoadOptions, Failure> {
    let default = if device == DeviceName::Cpu { ComputeType::F32 } else { ComputeType::Bf16 };
    let name = DType::from(dtype.unwrap_or(default)).name();
    let unknown = |_| Failure::usage("--dtype", format!("{name} is no type to compute in"));
    Ok(LoadOptions { dtype: name.parse().map_err(unknown)?, ..LoadOptions::default() })
}

/// Plans a spec as the flags change it.
pub(crate) fn decide(mut spec: Spec, args: &PlanArgs) -> Result<Plan, Failure> {
    present(&mut spec.machine, args.vram, args.ram);
    let policy = &mut spec.policy;
    policy.strategy = args.strategy.map_or(policy.strategy, Into::into);
    policy.rule = args.rule.map(Into::into).or(policy.rule);
    for Count { name, count } in &args.resident {
        component("--resident", name, &mut spec.components)?;
        policy.resident.insert(name.clone(), *count);
    }
    for Count { name, count } in &args.passes {
        component("--passes", name, &mut spec.components)?.passes = *count;
    }
    Ok(spec.plan()?)
}

/// A machine of these sizes, all of it free.
pub(crate) fn present(machine: &mut Machine, vram: Option<u64>, ram: Option<u64>) {
    if vram.is_some() {
        (machine.vram_free, machine.vram_total) = (vram, vram);
    }
    if let Some(ram) = ram {
        (machine.ram_available, machine.ram_total) = (ram, ram);
    }
}

fn component<'c>(flag: &str, name: &str, components: &'c mut [Component]) -> Result<&'c mut Component, Failure> {
    let known: Vec<_> = components.iter().map(|component| component.name.as_str()).collect();
    let unknown = Failure::usage(flag, format!("no component is named `{name}`; there are: {}", known.join(", ")));
    components.iter_mut().find(|component| component.name == name).ok_or(unknown)
}

pub(crate) fn answer(plan: &Plan, json: bool) -> Result<(), Failure> {
    if json {
        return print_document(plan);
    }
    print(table(plan))
}

fn table(plan: &Plan) -> String {
    let mut components =
        Table::new(&["component", "strategy", ">outside blocks", ">resident", ">streamed", "slots", ">on device"]);
    for part in &plan.components {
        let name = part.same_as.as_ref().map_or(part.name.clone(), |same| format!("{} = {same}", part.name));
        components.row([
            name,
            part.strategy.to_string(),
            show(part.rest),
            part.resident_count().to_string(),
            part.streamed_count().to_string(),
            if part.slots == 0 { "-".into() } else { format!("{} × {}", part.slots, show(part.slot_bytes)) },
            show(part.engine_bytes),
        ]);
    }
    let mut phases = Table::new(&["active together", ">on device", ">left free"]);
    for phase in &plan.phases {
        let headroom = phase.headroom.map_or("no device".into(), show);
        phases.row([phase.components.join(", "), show(phase.engine_bytes), headroom]);
    }
    let budget = plan.budget.map_or("no device".into(), |budget| format!("{} free", show(budget)));
    let notes: String = plan.notes.iter().map(|note| format!("\n- {}", sentence(note))).collect();
    format!(
        "{}: at most {} on the device ({budget}), {} of host memory\n\n{components}\n{phases}{notes}",
        plan.strategy,
        show(plan.peak.device),
        show(plan.peak.host)
    )
}

/// A note as a line of a list.
pub(crate) fn sentence(note: &mm_plan::Note) -> String {
    match &note.component {
        Some(component) if !note.text.contains(component.as_str()) => format!("{component}: {note}"),
        _ => note.to_string(),
    }
}
