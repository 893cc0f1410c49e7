//! `mm inspect`: what a checkpoint holds.

use crate::args::InspectArgs;
use crate::exit::Failure;
use crate::size::show;
use crate::table::{Table, print, print_document};
use mm_plan::{Component, Stack};
use mm_probe::{Checkpoint, Unloaded};
use serde::Serialize;

/// `components` is what a spec takes; what else was found stands beside it.
#[derive(Serialize)]
struct Answer {
    schema: u32,
    components: Vec<Component>,
    checkpoint: Checkpoint,
}

pub(crate) fn run(args: &InspectArgs) -> Result<(), Failure> {
    let checkpoint = mm_probe::inspect_variant(&args.path, args.dtype.map(Into::into), args.variant.as_deref())?;
    if args.json {
        return print_document(&Answer { schema: 1, components: checkpoint.to_plan(), checkpoint });
    }
    print(table(&checkpoint))
}

fn table(checkpoint: &Checkpoint) -> String {
    let mut components =
        Table::new(&["component", "class", ">files", ">tensors", ">stored", "as", ">on device", ">outside blocks"]);
    let mut stacks = Table::new(&["stack", ">blocks", ">of", ">in all"]);
    for part in &checkpoint.components {
        let types: Vec<&str> = part.stored.keys().map(String::as_str).collect();
        components.row([
            part.name.clone(),
            part.class.clone().or(part.architecture.as_ref().map(|known| known.name().into())).unwrap_or("?".into()),
            part.files.len().to_string(),
            part.tensors.to_string(),
            show(part.stored_bytes()),
            types.join(" "),
            show(part.component.bytes()),
            show(part.component.rest),
        ]);
        for stack in &part.component.stacks {
            stacks.row(stack_row(&part.name, stack));
        }
    }
    let class = checkpoint.class.as_ref().map(|class| format!("{class}\n\n"));
    let any = checkpoint.components.iter().any(|part| !part.component.stacks.is_empty());
    let stacks = any.then(|| format!("\n{stacks}"));
    let remarks = remarks(checkpoint).into_iter().map(|remark| format!("\n- {remark}"));
    class.into_iter().chain([components.to_string()]).chain(stacks).chain(remarks).collect()
}

/// What the sizes alone don't tell.
fn remarks(checkpoint: &Checkpoint) -> Vec<String> {
    let mut remarks = Vec::new();
    for part in &checkpoint.components {
        let name = &part.name;
        if let Some(variant) = &part.variant {
            remarks.push(format!("{name}: these are the weights of the variant {variant}"));
        }
        if let Some(first) = &part.same_as {
            remarks.push(format!("{name}: its files are those of {first}, they count once"));
        }
        remarks.extend(part.unloaded.iter().map(|some| format!("{name}: {}", not_loaded(some))));
    }
    remarks.extend(checkpoint.unloaded.iter().map(not_loaded));
    remarks
}

fn not_loaded(some: &Unloaded) -> String {
    let (tensors, bytes, reason) = (some.tensors, show(some.bytes), some.reason);
    match tensors {
        1 => format!("one tensor of {bytes} is not loaded: {reason}"),
        tensors => format!("{tensors} tensors of {bytes} are not loaded: {reason}"),
    }
}

fn stack_row(component: &str, stack: &Stack) -> [String; 4] {
    let sizes = stack.groups.iter().map(|group| group.bytes());
    let sum = sizes.clone().fold(0u64, u64::saturating_add);
    let of = match (sizes.clone().min(), sizes.max()) {
        (Some(least), Some(most)) => match (show(least), show(most)) {
            (least, most) if least == most => least,
            (least, most) => format!("{least} to {most}"),
        },
        _ => "-".into(),
    };
    [format!("{component}.{}", stack.name), stack.groups.len().to_string(), of, show(sum)]
}
