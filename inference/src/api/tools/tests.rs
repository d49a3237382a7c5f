//! What models of each family write, in the words of their documentation, and what it means.

use super::*;
use crate::fixture::base_model;
use proptest::prelude::*;
use serde::Deserialize;

const FORMATS: [ToolFormat; 4] =
    [ToolFormat::Llama3, ToolFormat::Hermes, ToolFormat::Mistral, ToolFormat::MistralV11];
const FUNCTIONS: [&str; 4] = ["get_current_weather", "get_stock_price", "get_time", "save"];

#[derive(Debug, Deserialize)]
struct Recorded {
    format: String,
    what: String,
    output: String,
    content: String,
    calls: Vec<RecordedCall>,
}

#[derive(Debug, PartialEq, Deserialize)]
struct RecordedCall {
    name: String,
    /// To the letter.
    arguments: String,
}

fn recorded() -> Vec<Recorded> {
    serde_json::from_str(include_str!("outputs.json")).expect("recorded outputs")
}

fn format(name: &str) -> ToolFormat {
    match name {
        "llama3" => ToolFormat::Llama3,
        "hermes" => ToolFormat::Hermes,
        "mistral" => ToolFormat::Mistral,
        "mistral-v11" => ToolFormat::MistralV11,
        other => panic!("no format {other}"),
    }
}

/// The parts of an answer that comes in these pieces; parts of a kind that follow each other are one.
fn parts(format: ToolFormat, pieces: &[&str]) -> Vec<Part> {
    let mut parser = CallParser::new(format, FUNCTIONS.map(String::from).into());
    let mut parts = Vec::new();
    for piece in pieces {
        parser.push(piece, &mut parts);
    }
    parser.finish(&mut parts);
    let mut merged: Vec<Part> = Vec::new();
    for part in parts {
        match (merged.last_mut(), part) {
            (Some(Part::Text(text)), Part::Text(more)) => *text += &more,
            (Some(Part::Arguments(text)), Part::Arguments(more)) => *text += &more,
            (_, part) => merged.push(part),
        }
    }
    merged
}

/// As an answer that is not streamed has it.
fn whole(parts: &[Part]) -> (String, Vec<RecordedCall>) {
    let (mut content, mut calls) = (String::new(), Vec::new());
    for part in parts {
        match part {
            Part::Text(text) => content += text,
            Part::Call(name) => {
                calls.push(RecordedCall { name: name.clone(), arguments: String::new() });
            }
            Part::Arguments(more) => calls.last_mut().expect("a call").arguments += more,
            Part::CallEnd => {}
            Part::NoCall { text, unseen } => {
                let call = calls.pop().expect("a call");
                content += text;
                let seen = &text[..text.len() - unseen];
                assert!(seen.ends_with(&call.arguments), "{seen:?} ends with {call:?}");
            }
        }
    }
    (content, calls)
}

#[test]
fn what_models_write_is_read_alike_wherever_it_is_cut() {
    for Recorded { format: family, what, output, content, calls } in recorded() {
        let format = format(&family);
        let uncut = parts(format, &[&output]);
        assert_eq!(whole(&uncut), (content, calls), "{family}, {what}");
        for cut in (0..=output.len()).filter(|at| output.is_char_boundary(*at)) {
            let (begin, end) = output.split_at(cut);
            assert_eq!(parts(format, &[begin, end]), uncut, "{family}, {what}: {begin:?}");
        }
        let characters: Vec<&str> = output.split("").collect();
        assert_eq!(parts(format, &characters), uncut, "{family}, {what}");
    }
}

#[test]
fn text_goes_through_at_once_and_arguments_as_they_come() {
    let mut parser = CallParser::new(ToolFormat::Hermes, FUNCTIONS.map(String::from).into());
    let mut push = |text: &str| {
        let mut parts = Vec::new();
        parser.push(text, &mut parts);
        parts
    };
    let text = |text: &str| vec![Part::Text(text.into())];
    assert_eq!(push("I look"), text("I look"));
    assert_eq!(push(" a < b, <to"), text(" a < b,"));
    assert_eq!(push("day>"), text(" <today>"));
    assert_eq!(push("\n<tool_call>\n{\"name\": \"sa"), []);
    assert_eq!(push("ve\", \"arguments\":"), []);
    let begun = [Part::Call("save".into()), Part::Arguments("{\"a\": \"".into())];
    assert_eq!(push(" {\"a\": \""), begun);
    assert_eq!(push("</tool_call>"), [Part::Arguments("</tool_call>".into())]);
    assert_eq!(push("\"}"), [Part::Arguments("\"}".into())]);
    assert_eq!(push("}\n</tool"), [Part::CallEnd]);
    assert_eq!(push("_call>\n"), []);
}

fn pieces() -> impl Strategy<Value = Vec<String>> {
    let words = [
        "<tool_call>",
        "</tool_call>",
        "[TOOL_CALLS]",
        "<|python_tag|>",
        "{\"name\": \"save\"",
        ", ",
        "\"arguments\": ",
        "\"parameters\": ",
        "{\"a\": 1}",
        "}",
        "[",
        "]",
        "; ",
        "\n",
        "{",
        "\"",
        "é",
        "text",
        "\\",
        "{\"name\": \"get_time\", \"arguments\": {}}",
        ": ",
        "<",
        "[TOOL",
        "save",
        "[ARGS]",
        "[CALL",
    ];
    proptest::collection::vec(
        proptest::sample::select(words.to_vec()).prop_map(String::from),
        0..14,
    )
}

proptest! {
    #[test]
    fn any_text_is_read_alike_in_any_pieces_and_no_word_of_it_is_lost(pieces in pieces()) {
        let text = pieces.concat();
        for format in FORMATS {
            let uncut = parts(format, &[&text]);
            let cut: Vec<&str> = pieces.iter().map(String::as_str).collect();
            prop_assert_eq!(&parts(format, &cut), &uncut);
            let characters: Vec<&str> = text.split("").collect();
            prop_assert_eq!(&parts(format, &characters), &uncut);
            let (content, calls) = whole(&uncut);
            if calls.is_empty() {
                prop_assert_eq!(&content, &text);
                continue;
            }
            let mut kept = content.matches("text").count();
            for call in calls {
                kept += call.arguments.matches("text").count();
                prop_assert!(FUNCTIONS.contains(&&*call.name));
                prop_assert!(serde_json::from_str::<Map<String, Value>>(&call.arguments).is_ok());
            }
            prop_assert_eq!(kept, text.matches("text").count());
        }
    }
}

fn tools(choice: ToolChoice, parallel: bool) -> Tools {
    let schema = json!({
        "type": "object",
        "properties": { "city": { "enum": ["Graz", "Linz"] } },
        "required": ["city"],
        "additionalProperties": false,
    });
    let Value::Object(schema) = schema else { panic!("an object") };
    let function = |name: &str, parameters| Function {
        name: name.into(),
        description: None,
        parameters,
        strict: true,
    };
    let functions = vec![function("save", Some(schema)), function("get_time", None)];
    Tools { form: CHAT, functions, choice, parallel }
}

#[tokio::test]
async fn whatever_a_forced_grammar_lets_through_is_read_as_calls() {
    let cases = [
        (ToolChoice::Named(0), true, 1),
        (ToolChoice::Named(1), true, 1),
        (ToolChoice::Required, false, 1),
        (ToolChoice::Required, true, grammar::MAX_CALLS),
    ];
    for format in FORMATS {
        for (choice, parallel, most) in &cases {
            let tools = tools(choice.clone(), *parallel);
            let grammar = grammar::of(Form::Calls, &tools, format, &base_model().tokenizer);
            for seed in 0..4 {
                let text = crate::guidance::walk(grammar.clone(), seed).await;
                let (content, calls) = whole(&parts(format, &[&text]));
                assert_eq!(content, "", "{text}");
                assert!((1..=*most).contains(&calls.len()), "{text}");
                for call in calls {
                    let arguments: Value = serde_json::from_str(&call.arguments).expect("JSON");
                    match call.name.as_str() {
                        "save" => assert!(arguments["city"].is_string(), "{text}"),
                        _ => assert_eq!(arguments, json!({}), "{text}"),
                    }
                    if let ToolChoice::Named(index) = choice {
                        assert_eq!(call.name, tools.functions[*index].name);
                    }
                }
            }
        }
    }
}

/// How a model of each format begins a call of `save` inside of text, if there may be text.
const BEGINNINGS: [&str; 4] = [
    "{\"name\": \"save\", \"parameters\": {",
    "I will save < it.\n<tool_call>\n{\"name\": \"save\", \"arguments\": {",
    "I [will] save it.[TOOL_CALLS][{\"name\": \"save\", \"arguments\": {",
    "I [will] save it.[TOOL_CALLS]save[ARGS]{",
];

#[tokio::test]
async fn a_call_inside_of_text_follows_its_schema_once_it_has_begun() {
    let tokenizer = &base_model().tokenizer;
    for (format, begin) in FORMATS.into_iter().zip(BEGINNINGS) {
        for parallel in [true, false] {
            let tools = tools(ToolChoice::Auto, parallel);
            let grammar = grammar::of(Form::Text, &tools, format, tokenizer);
            for seed in 0..4 {
                let text = crate::guidance::walk_behind(begin, grammar.clone(), seed, 60).await;
                let (content, calls) = whole(&parts(format, &[&text]));
                let arguments: Value =
                    serde_json::from_str(&calls.first().expect(&text).arguments).expect("JSON");
                assert!(["Graz", "Linz"].contains(&arguments["city"].as_str().expect(&text)));
                assert!(content.starts_with("I ") || format == ToolFormat::Llama3, "{text}");
            }
        }
        let plain = "{ \"is\": \"it\" }\nYes, so it is.";
        let tools = tools(ToolChoice::Auto, true);
        let grammar = grammar::of(Form::Text, &tools, format, tokenizer);
        let text = crate::guidance::walk_behind(plain, grammar, 1, 30).await;
        assert!(text.starts_with(plain), "{text}");
    }
}

#[tokio::test]
async fn an_answer_that_may_be_calls_or_json_is_one_of_them() {
    let schema = json!({
        "type": "object",
        "properties": { "kind": { "enum": ["a", "b"] } },
        "required": ["kind"],
        "additionalProperties": false,
    });
    for format in &FORMATS[1..] {
        let form = Form::CallsOrJson { place: "x".into(), schema: schema.clone() };
        let tools = tools(ToolChoice::Auto, true);
        let grammar = grammar::of(form, &tools, *format, &base_model().tokenizer);
        let mut of_calls = 0;
        for seed in 0..8 {
            let text = crate::guidance::walk(grammar.clone(), seed).await;
            let (content, calls) = whole(&parts(*format, &[&text]));
            if calls.is_empty() {
                let answer: Value = serde_json::from_str(&content).expect("JSON");
                assert!(["a", "b"].contains(&answer["kind"].as_str().expect("a kind")), "{text}");
            } else {
                assert_eq!(content, "", "{text}");
                of_calls += 1;
            }
        }
        assert!((1..8).contains(&of_calls), "either is drawn at random: {of_calls} of 8");
    }
}
