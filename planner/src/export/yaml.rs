//! JSON values as YAML that people can read: block style, every string quoted or a literal block.
//!
//! Quoted strings are JSON's, which YAML 1.2 reads alike. Text of several lines that ends with one line feed becomes a
//! literal block (`|`). Keys are written as they are: only names that YAML takes as plain scalars come here.
//!
//! Not here: anything that Kubernetes manifests do not need (anchors, tags, flow style).

use serde_json::Value;

/// One document.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    node(value, 0, &mut text);
    text
}

/// A block at its indentation, each line ended.
fn node(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                text.push_str(&" ".repeat(indent));
                text.push_str(key);
                text.push(':');
                child(value, indent, text);
            }
        }
        Value::Array(items) if !items.is_empty() => items.iter().for_each(|item| element(item, indent, text)),
        scalar => {
            text.push_str(&" ".repeat(indent));
            text.push_str(&scalar.to_string());
            text.push('\n');
        }
    }
}

/// What stands behind `key:`.
fn child(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            text.push('\n');
            node(value, indent + 2, text);
        }
        Value::Array(items) if !items.is_empty() => {
            text.push('\n');
            node(value, indent, text);
        }
        Value::String(lines) if is_block(lines) => {
            text.push_str(" |\n");
            for line in lines.lines() {
                if !line.is_empty() {
                    text.push_str(&" ".repeat(indent + 2));
                    text.push_str(line);
                }
                text.push('\n');
            }
        }
        scalar => {
            text.push(' ');
            text.push_str(&scalar.to_string());
            text.push('\n');
        }
    }
}

/// `- ` and the item, whose first line stands behind the dash.
fn element(item: &Value, indent: usize, text: &mut String) {
    let mut block = String::new();
    node(item, indent + 2, &mut block);
    text.push_str(&" ".repeat(indent));
    text.push_str("- ");
    text.push_str(&block[indent + 2..]);
}

/// A literal block gives the text back: it starts with no space, holds no other control characters, ends once.
fn is_block(text: &str) -> bool {
    text.ends_with('\n')
        && !text.ends_with("\n\n")
        && !text.starts_with([' ', '\n'])
        && text.chars().all(|c| c == '\n' || !c.is_control())
}
