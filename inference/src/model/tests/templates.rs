//! What Hugging Face's templates use of Jinja and Python.

use crate::model::chat_template::TemplateTokens;
use crate::model::{ChatMessage, ChatTemplate, TemplateError};
use time::OffsetDateTime;

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into() }
}

fn render(source: &str) -> Result<String, TemplateError> {
    let tokens = TemplateTokens { bos: Some("<s>".into()), eos: Some("</s>".into()) };
    let messages = [message("system", " Be brief. "), message("user", "<a> & 'b'")];
    ChatTemplate::new(source, tokens)?.render(&messages, true)
}

#[test]
fn templates_of_other_models_render() {
    let cases = [
        ("{{ bos_token }}{{ messages[0].content | trim }}{{ eos_token }}", "<s>Be brief.</s>"),
        ("{{ messages[0]['content'].strip() }}|{{ 'a,b'.split(',')[-1] }}", "Be brief.|b"),
        ("{% if 'brief' in messages[0]['content'] and tools is none %}yes{% endif %}", "yes"),
        ("{{ messages[1]['content'].startswith('<a>') and not 'x'.endswith('y') }}", "True"),
        ("{% for m in messages[1:] %}{{ m.role.upper() }}{% endfor %}", "USER"),
        ("{{ messages[1] | tojson }}", r#"{"role": "user", "content": "<a> & 'b'"}"#),
        ("{{ [1, 'é'] | tojson(indent=2) }}", "[\n  1,\n  \"é\"\n]"),
        ("{{ {'a': 1}.get('b', 'none') }}{{ {'a': 1}.items() | list | length }}", "none1"),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}\
             {% if m.role == 'system' %}{% continue %}{% endif %}{{ ns.n }}{% break %}{% endfor %}",
            "2",
        ),
        // A line that holds only a block leaves no trace.
        (
            "{% for m in messages %}\n    {% if loop.last %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}",
            "user\n",
        ),
    ];
    for (source, expected) in cases {
        assert_eq!(render(source).as_deref(), Ok(expected), "{source}");
    }
    assert!(matches!(render("{% unknown %}"), Err(TemplateError::Malformed(_))));
}

#[test]
fn a_template_refuses_messages_in_its_own_words() {
    let refused = render("{{ raise_exception('System role not supported') }}");
    assert_eq!(refused, Err(TemplateError::Refused("System role not supported".into())));
    let in_macro = "{% macro f() %}{{ raise_exception('no') }}{% endmacro %}{{ f() }}";
    assert_eq!(render(in_macro), Err(TemplateError::Refused("no".into())));
    assert!(matches!(render("{{ 1 + 'a' }}"), Err(TemplateError::Failed(_))));
}

#[test]
fn a_template_knows_the_date() {
    let before = OffsetDateTime::now_utc().year();
    let year: i32 = render("{{ strftime_now('%Y') }}").expect("renders").parse().expect("a year");
    assert!((before..=before + 1).contains(&year));
}
