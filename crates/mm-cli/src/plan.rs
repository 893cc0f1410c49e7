//! `mm plan`: decides, and says why.

use crate::args::{ComputeType, Count, DeviceName, PlanArgs};
use crate::draw::draw;
use crate::exit::{Failure, Stage};
use crate::output::OutputFile;
use crate::plan_table::table;
use crate::spec;
use crate::table::{print, print_document};
use crate::workload;
use mm_diffusion::{Folder, LoadOptions};
use mm_plan::{Component, DType, Links, Machine, Plan, Policy, Spec};
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn run(args: &PlanArgs) -> Result<ExitCode, Failure> {
    let picture = |file: &Path| OutputFile::check_named("--svg", file, &["svg"], "plans are drawn as SVG");
    let picture = args.svg.as_deref().map(picture).transpose()?;
    match (&args.path, &args.spec) {
        (Some(path), _) => {
            from_checkpoint(path, args)?.answer(picture.as_ref(), args.json)?;
            Ok(ExitCode::SUCCESS)
        }
        (None, Some(file)) => spec::run(file, args, picture.as_ref()),
        (None, None) => Err(Failure::usage("PATH", "name a checkpoint, or a spec by --spec")),
    }
}

/// For this machine with its first GPU, what the headers say; for a device that is named, exactly what a run on it would
/// plan.
fn from_checkpoint(path: &Path, args: &PlanArgs) -> Result<Decision, Failure> {
    let report = mm_probe::probe();
    let path = mm_probe::locate(path)?;
    let workload = workload::asked(args, &path);
    let headers = || mm_probe::inspect_variant(&path, args.dtype.map(Into::into), args.variant.as_deref());
    let spec = |machine, components| Spec { schema: 1, machine, components, policy: Policy::default() };
    let Some(device) = args.device else {
        let checkpoint = headers()?;
        let mut components = checkpoint.to_plan();
        if let Some(workload) = &workload {
            workload::attach(&mut components, &checkpoint, workload);
        }
        let decision = Decision::make(spec(report.machine(None), components), args);
        return decision.inspect_err(|failure| workload::explain(failure, &checkpoint, workload.as_ref()));
    };
    let mut components = describe(&folder(&path, args.variant.as_ref())?, &load_options(device, args.dtype)?)?;
    let checkpoint = workload.as_ref().map(|_| headers()).transpose()?;
    match device {
        DeviceName::Cuda(index) => {
            if let (Some(workload), Some(checkpoint)) = (&workload, &checkpoint) {
                workload::attach(&mut components, checkpoint, workload);
            }
            Decision::make(spec(report.machine(usize::try_from(index).ok()), components), args)
        }
        DeviceName::Cpu => {
            let mut decision = Decision::make(spec(report.host_machine(args.vram.or(args.ram)), components), args)?;
            if let (Some(workload), Some(checkpoint)) = (&workload, &checkpoint) {
                workload::note(&mut decision.plan, checkpoint, workload);
            }
            Ok(decision)
        }
    }
}

/// The pipeline's folder, wherever the path leads.
pub(crate) fn folder(path: &Path, variant: Option<&String>) -> Result<Folder, Failure> {
    let path = mm_probe::locate(path)?;
    if let Some(variant) = variant {
        // A variant that no component has is told before anything is loaded.
        mm_probe::inspect_variant(&path, None, Some(variant))?;
    }
    let folder = Folder::open(path).map_err(|error| Failure::of_pipeline(error, Stage::Load))?;
    Ok(folder.variant(variant.cloned()))
}

fn describe(folder: &Folder, options: &LoadOptions) -> Result<Vec<Component>, Failure> {
    mm_diffusion::describe(folder, options).map_err(|error| Failure::of_pipeline(error, Stage::Load))
}

/// A pipeline on this device: f32 on the CPU and bf16 on CUDA, unless a type is given.
pub(crate) fn load_options(device: DeviceName, dtype: Option<ComputeType>) -> Result<LoadOptions, Failure> {
    let default = if device == DeviceName::Cpu { ComputeType::F32 } else { ComputeType::Bf16 };
    let name = DType::from(dtype.unwrap_or(default)).name();
    let unknown = |_| Failure::usage("--dtype", format!("{name} is no type to compute in"));
    Ok(LoadOptions { dtype: name.parse().map_err(unknown)?, ..LoadOptions::default() })
}

/// What was planned, and the plan.
pub(crate) struct Decision {
    machine: Machine,
    components: Vec<Component>,
    pub(crate) plan: Plan,
}

impl Decision {
    /// Plans a spec as the flags change it.
    pub(crate) fn make(mut spec: Spec, args: &PlanArgs) -> Result<Self, Failure> {
        present(&mut spec.machine, args.vram, args.ram);
        link(&mut spec.machine, args.link, args.staging)?;
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
        let plan = spec.plan()?;
        Ok(Self { machine: spec.machine, components: spec.components, plan })
    }

    /// Draws it where asked to, and answers.
    pub(crate) fn answer(&self, picture: Option<&OutputFile>, json: bool) -> Result<(), Failure> {
        if let Some(file) = picture {
            file.write(self.picture()?.as_bytes())?;
        }
        if json {
            return print_document(&self.plan);
        }
        print(table(&self.plan))
    }

    fn picture(&self) -> Result<String, Failure> {
        let missing = match &self.machine {
            Machine { vram_free: None, .. } => "there is no device: give its memory, as in --vram 12GiB",
            machine if !is_measured(machine) => {
                "no link of this machine was measured, so there are no times to draw: give the rate of copies to the \
                 device in bytes per second, as in --link 25GB"
            }
            _ => return Ok(draw(&self.machine, &self.plan, &self.schedule()?)),
        };
        Err(Failure::usage("--svg", missing))
    }

    fn schedule(&self) -> Result<mm_plan::Schedule, Failure> {
        Ok(mm_plan::simulate(&self.machine, &self.components, &self.plan)?)
    }
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

fn is_measured(machine: &Machine) -> bool {
    machine.links.is_some_and(|links| links.h2d > 0)
}

/// A machine with these rates; its other figures stay.
fn link(machine: &mut Machine, h2d: Option<u64>, staging: Option<u64>) -> Result<(), Failure> {
    if h2d.is_none() && staging.is_none() {
        return Ok(());
    }
    if h2d.is_none() && !is_measured(machine) {
        return Err(Failure::usage("--staging", "no link of this machine was measured: give its rate too, by --link"));
    }
    let links = machine.links.get_or_insert(Links { h2d: 0, staging: None, disk: None, copy_fixed_ns: 0 });
    links.h2d = h2d.unwrap_or(links.h2d);
    links.staging = staging.or(links.staging);
    Ok(())
}

fn component<'c>(flag: &str, name: &str, components: &'c mut [Component]) -> Result<&'c mut Component, Failure> {
    let known: Vec<_> = components.iter().map(|component| component.name.as_str()).collect();
    let unknown = Failure::usage(flag, format!("no component is named `{name}`; there are: {}", known.join(", ")));
    components.iter_mut().find(|component| component.name == name).ok_or(unknown)
}
