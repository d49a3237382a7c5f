//! What Hugging Face's templates use of Jinja and Python.

use crate::model::chat_template::{TemplateSources, TemplateTokens};
use crate::model::{ChatMessage, ChatTemplate, TemplateError, ToolCall, ToolFormat};
use serde_json::{Value, json};
use time::OffsetDateTime;

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage::new(role, content)
}

fn render(source: &str) -> Result<String, TemplateError> {
    let tokens = TemplateTokens { bos: Some("<s>".into()), eos: Some("</s>".into()) };
    let messages = [message("system", " Be brief. "), message("user", "<a> & 'b'")];
    ChatTemplate::new(source, tokens)?.render(&messages, &[], true)
}

/// Every function, filter, test, method and statement that templates of Llama 3, Qwen and Mistral use.
#[test]
fn what_templates_use_of_jinja_and_python_is_there() {
    let cases = [
        ("{{ bos_token }}{{ messages[0].content | trim }}{{ eos_token }}", "<s>Be brief.</s>"),
        ("{{ messages[0]['content'].strip() }}|{{ 'a,b'.split(',')[-1] }}", "Be brief.|b"),
        ("{% if 'brief' in messages[0]['content'] and tools is none %}yes{% endif %}", "yes"),
        (
            "{% if not date_string is defined %}{% set date_string = 'now' %}{% endif %}{{ date_string }}",
            "now",
        ),
        (
            "{% if enable_thinking is defined and enable_thinking is false %}off{% else %}on{% endif %}",
            "on",
        ),
        (
            "{{ strftime_now is defined }}{{ 'tool_calls' in messages[0] }}{{ messages[0].x is defined }}",
            "TrueFalseFalse",
        ),
        (
            "{{ 'a' is string }}{{ {} is mapping }}{{ [] is iterable }}{{ 1 is number }}{{ '' is none }}",
            "TrueTrueTrueTrueFalse",
        ),
        ("{{ messages[1]['content'].startswith('<a>') and not 'x'.endswith('y') }}", "True"),
        ("{{ 'xyz'.startswith(('a', 'x')) }}{{ 'xyz'.endswith(('a', 'b')) }}", "TrueFalse"),
        ("{% for m in messages[1:] %}{{ m.role.upper() }}{% endfor %}", "USER"),
        (
            "{% for m in messages[::-1] %}{{ m.role }},{% endfor %}{{ 'abcd'[:2] }}{{ 'abcd'[-1:] }}",
            "user,system,abd",
        ),
        (
            "{{ '<think>\na\n</think>\n\nb'.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') }}",
            "a",
        ),
        (
            "{{ 'a b  c'.split() | join('+') }}|{{ 'a:b:c'.split(':', 1)[1] }}|{{ 'a:b:c'.rsplit(':', 1)[0] }}",
            "a+b+c|b:c|a:b",
        ),
        (
            "{{ ' a  b c '.split(none, 1)[1] }}|{{ 'a\nb'.splitlines() | length }}|{{ ', '.join(['a', 'b']) }}",
            "b c|2|a, b",
        ),
        (
            "{{ 'hello world'.title() }}|{{ 'hELLO'.capitalize() }}|{{ 'A'.lower() }}",
            "Hello World|Hello|a",
        ),
        (
            "{{ 'aXbXc'.replace('X', '-', 1) }}|{{ 'aa'.count('a') }}|{{ 'abc'.find('c') }}{{ 'abc'.find('x') }}",
            "a-bXc|2|2-1",
        ),
        (
            "{{ 'abc'.removeprefix('a') }}|{{ 'abc'.removesuffix('c') }}|{{ '12'.isdigit() }}",
            "bc|ab|True",
        ),
        ("{{ messages[1] | tojson }}", r#"{"role": "user", "content": "<a> & 'b'"}"#),
        ("{{ [1, 'é', {}, []] | tojson(indent=2) }}", "[\n  1,\n  \"é\",\n  {},\n  []\n]"),
        (
            "{{ {'b': [1, 2], 'a': 'é'} | tojson(indent=4, sort_keys=true, ensure_ascii=true) }}",
            "{\n    \"a\": \"\\u00e9\",\n    \"b\": [\n        1,\n        2\n    ]\n}",
        ),
        ("{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}", r#"{"a":[1,2]}"#),
        ("{{ {'a': 1}.get('b', 'none') }}{{ {'a': 1}.items() | list | length }}", "none1"),
        (
            "{% for k, v in {'a': 1, 'b': 2}.items() if k != 'a' %}{{ k }}={{ v }}{% endfor %}",
            "b=2",
        ),
        (
            "{% for k, v in {'a': 1} | items %}{{ k ~ v }}{% endfor %}{{ {'a': 1}.keys() | list }}",
            "a1['a']",
        ),
        (
            "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}{{ messages | rejectattr('role', 'equalto', 'user') | map(attribute='role') | first }}",
            "1system",
        ),
        (
            "{{ x | default('d') }}{{ [3, 1] | sort | last }}{{ 'a' | upper }}{{ 5 % 2 == 1 }}{{ '7' | int + 1 }}",
            "d3ATrue8",
        ),
        (
            "{% macro turn(m) %}[{{ m.role }}]{% endmacro %}{{ turn(messages[0]) }}{% set y %}z{% endset %}{{ y }}",
            "[system]z",
        ),
        (
            "{% for m in messages %}{% generation %}{{ loop.index0 }}{{ loop.first }}{%- endgeneration %}{% endfor %}",
            "0True1False",
        ),
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

/// In the shape of Llama 3.1's: headers, a date, the system's turn taken out of the list.
#[test]
fn a_template_like_llama_3s_renders() {
    let source = "{{- bos_token }}
{%- if custom_tools is defined %}
    {%- set tools = custom_tools %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = \"\" %}
{%- endif %}
{{- \"<system>\" + system_message + \"</s>\" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<' + message['role'] + '>\\n'+ message['content'] | trim + '</s>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception(\"one call at a time\") }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>\\n' }}
{%- endif %}
";
    let expected = "<s><system>Be brief.</s><user>\n<a> & 'b'</s><assistant>\n";
    assert_eq!(render(source).as_deref(), Ok(expected));
}

/// In the shape of Qwen3's: the last question is looked for from behind, thoughts are cut off.
#[test]
fn a_template_like_qwen_3s_renders() {
    let source = "{%- set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and message.role == \"user\" and message.content is string and not(message.content.startswith('<r>') and message.content.endswith('</r>')) %}
        {%- set ns.searching = false %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == \"assistant\" %}
        {%- set content = message.content %}
        {%- if message.reasoning_content is not string and '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last %}{{- 'after: ' }}{%- endif %}
        {{- content + '\\n' }}
    {%- else %}
        {{- '<' + message.role + '>' + message.content + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<assistant>\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}";
    let messages = [
        message("user", "1"),
        message("assistant", "<think>\nwell\n</think>\n\n2"),
        message("user", "3"),
        message("user", "<r>4</r>"),
        message("assistant", "5"),
    ];
    let template = ChatTemplate::new(source, TemplateTokens::default()).expect("parses");
    let expected = "<user>1\n2\n<user>3\n<user><r>4</r>\nafter: 5\n<assistant>\n";
    assert_eq!(template.render(&messages, &[], true).as_deref(), Ok(expected));
}

/// In the shape of Mistral's: turns must alternate, and the system's goes before the last question.
#[test]
fn a_template_like_mistrals_renders_and_refuses() {
    let source = "{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.last and system_message is defined %}
            {{- '[INST] ' + system_message + '\\n\\n' + message['content'] + '[/INST]' }}
        {%- else %}
            {{- '[INST] ' + message['content'] + '[/INST]' }}
        {%- endif %}
    {%- elif message['role'] == 'assistant' %}
        {{- ' ' + message['content'] + eos_token }}
    {%- else %}
        {{- raise_exception('Only user and assistant roles are served') }}
    {%- endif %}
{%- endfor %}";
    let tokens = TemplateTokens { bos: Some("<s>".into()), eos: Some("</s>".into()) };
    let template = ChatTemplate::new(source, tokens).expect("parses");
    let mut messages =
        vec![message("system", "S"), message("user", "1"), message("assistant", "2")];
    messages.push(message("user", "3"));
    let expected = "<s>[INST] 1[/INST] 2</s>[INST] S\n\n3[/INST]";
    assert_eq!(template.render(&messages, &[], true).as_deref(), Ok(expected));
    messages.push(message("user", "4"));
    let refused = Err(TemplateError::Refused("roles must alternate".into()));
    assert_eq!(template.render(&messages, &[], true), refused);
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
    let date = render("{{ strftime_now('%d %b %Y') }}").expect("renders");
    assert!(date.len() == 11 && date.ends_with(&year.to_string()), "{date}");
}

fn a_round_with_a_tool() -> (Vec<ChatMessage>, Vec<Value>) {
    let arguments = serde_json::from_value(json!({ "unit": "C", "city": "Graz" })).expect("a map");
    let messages = vec![
        message("user", "Warm?"),
        ChatMessage {
            tool_calls: vec![ToolCall::new("abcdefghi".into(), "weather".into(), arguments)],
            ..message("assistant", "")
        },
        ChatMessage {
            tool_call_id: Some("abcdefghi".into()),
            name: Some("weather".into()),
            ..message("tool", "21")
        },
    ];
    let function =
        json!({ "name": "weather", "description": "Now.", "parameters": { "type": "object" } });
    (messages, vec![json!({ "type": "function", "function": function })])
}

/// Tools, calls and their answers in the shape of the three families' templates: calls' arguments are
/// objects in the order of the client, and fields that are not there are undefined.
#[test]
fn templates_of_every_family_write_tools_calls_and_answers() {
    let qwen = r#"{%- if tools %}{%- for tool in tools %}{{- tool | tojson }}{{- "\n" }}{%- endfor %}{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "assistant" and not message.tool_calls) %}
        {{- message.role + ':' + message.content + "\n" }}
    {%- elif message.role == "assistant" %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}{{- tool_call.arguments | tojson }}{{- '}\n</tool_call>\n' }}
        {%- endfor %}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}{{- 'user:' }}{%- endif %}
        {{- '<tool_response>' + message.content + '</tool_response>' }}
    {%- endif %}
{%- endfor %}"#;
    let tool = r#"{"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": {"type": "object"}}}"#;
    let call = r#"{"unit": "C", "city": "Graz"}"#;
    let qwens = format!(
        "{tool}\nuser:Warm?\n<tool_call>\n{{\"name\": \"weather\", \"arguments\": {call}}}\n</tool_call>\n\
         user:<tool_response>21</tool_response>"
    );
    let llama = r#"{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if tools is not none %}{%- for t in tools %}{{- t | tojson(indent=4) }}{%- endfor %}{%- endif %}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<' + message['role'] + '>' + message['content'] | trim }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("one call at a time") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<ipython>" }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}
    {%- endif %}
{%- endfor %}"#;
    let llamas_end =
        format!("<user>Warm?{{\"name\": \"weather\", \"parameters\": {call}}}<ipython>21");
    let mistral = r#"{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- for message in messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
            {%- endfor %}
            {{- "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function|tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id|length != 9 %}{{- raise_exception("nine") }}{%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
        {%- endfor %}
        {{- "]" }}
    {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
        {%- if message.content is defined and message.content.content is defined %}{%- set content = message.content.content %}{%- else %}{%- set content = message.content %}{%- endif %}
        {{- '[TOOL_RESULTS] {"content": ' + content|string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- endif %}
{%- endfor %}"#;
    let mistrals = format!(
        "[AVAILABLE_TOOLS] [{tool}][/AVAILABLE_TOOLS][INST] Warm?[/INST][TOOL_CALLS] [{{\"name\": \"weather\", \
         \"arguments\": {call}, \"id\": \"abcdefghi\"}}][TOOL_RESULTS] {{\"content\": 21, \"call_id\": \
         \"abcdefghi\"}}[/TOOL_RESULTS]"
    );
    let (messages, tools) = a_round_with_a_tool();
    let rendered = |source: &str, format: ToolFormat| {
        let template = ChatTemplate::new(source, TemplateTokens::default()).expect("parses");
        assert!(template.knows_tools() && template.tool_format() == format);
        template.render(&messages, &tools, false).expect("renders")
    };
    assert_eq!(rendered(qwen, ToolFormat::Hermes), qwens);
    let llamas = rendered(llama, ToolFormat::Llama3);
    assert!(
        llamas.starts_with("{\n    \"type\": \"function\"") && llamas.ends_with(&llamas_end),
        "{llamas}"
    );
    assert_eq!(rendered(mistral, ToolFormat::Mistral), mistrals);
}

#[test]
fn a_template_of_its_own_for_tools_is_used_where_there_are_some() {
    let sources =
        TemplateSources { chat: "plain", tool_use: Some("<tool_call>{{ tools | length }}") };
    let template = ChatTemplate::new(sources, TemplateTokens::default()).expect("parses");
    let (messages, tools) = a_round_with_a_tool();
    assert_eq!(template.render(&messages, &[], true).as_deref(), Ok("plain"));
    assert_eq!(template.render(&messages, &tools, true).as_deref(), Ok("<tool_call>1"));
}
