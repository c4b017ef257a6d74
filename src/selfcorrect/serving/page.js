// Asks the chat interface, and shows attempts as they come. Model text enters the page through textContent only.
(() => {
  const { make, themeToggle, differences, words } = common;
  const at = (id) => document.getElementById(id);
  let about = null;
  let secret = "";
  let running = null; // the AbortController of what is being asked

  async function request(path, body, signal) {
    const headers = {};
    if (secret) headers.authorization = `Bearer ${secret}`;
    if (body) headers["content-type"] = "application/json";
    const options = { headers, signal, method: body ? "POST" : "GET", body: body && JSON.stringify(body) };
    const reply = await fetch(path, options);
    if (reply.ok) return reply;
    const told = await reply.json().catch(() => null);
    const error = new Error(told?.error?.message || `status ${reply.status}`);
    error.status = reply.status;
    throw error;
  }

  // The JSON objects of a stream of server-sent events.
  async function* events(reply) {
    const decoder = new TextDecoder();
    const reader = reply.body.getReader();
    let left = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) throw new Error("the answer was cut off");
      left += decoder.decode(value, { stream: true });
      const lines = left.split("\n");
      left = lines.pop();
      for (const line of lines) {
        if (!line.startsWith("data: ")) continue;
        if (line === "data: [DONE]") return;
        const data = JSON.parse(line.slice(6));
        if (data.error) throw new Error(data.error.message);
        yield data;
      }
    }
  }

  // The text as written, its words at the given places inside `del` and `ins`.
  function mark(pre, text, gone, fresh) {
    pre.replaceChildren();
    let index = 0;
    let plain = "";
    let open = null; // the last mark, while nothing but blanks of the same line has followed it
    for (const part of text.split(/(\s+)/)) {
      const word = part.trim() !== "";
      const tag = word ? (gone.has(index) ? "del" : fresh.has(index) ? "ins" : "") : "";
      if (tag) {
        if (open?.localName === tag) open.textContent += plain + part;
        else pre.append(plain, open = make(tag, "", part));
        plain = "";
      } else {
        plain += part;
        if (word || part.includes("\n")) open = null;
      }
      index += word;
    }
    pre.append(plain);
  }

  const NONE = new Set();

  // Every attempt shows what the next one gave up, and what is new in it.
  function compare(attempts) {
    attempts.forEach((attempt, index) => {
      const [before, after] = [attempts[index - 1], attempts[index + 1]];
      const to = after?.ended ? differences(words(attempt.text), words(after.text)) : null;
      const from = before && attempt.ended ? differences(words(before.text), words(attempt.text)) : null;
      if (to || from) mark(attempt.pre, attempt.text, to ? to.gone : NONE, from ? from.fresh : NONE);
      if (before && attempt.ended && before.text === attempt.text) attempt.same.textContent = "unchanged";
    });
  }

  function attemptCard(played, number) {
    const card = make("div", "attempt");
    const title = make("h3", "", `Attempt ${number}`);
    const [grade, answer, same] = [make("span"), make("span", "muted"), make("span", "muted")];
    title.append(" ", grade, " ", answer, " ", same);
    const pre = make("pre");
    pre.tabIndex = 0;
    pre.setAttribute("role", "group");
    pre.setAttribute("aria-label", `${played.name}, attempt ${number}`);
    pre.setAttribute("aria-busy", "true");
    const detail = make("p");
    detail.hidden = true;
    card.append(title, pre, detail);
    played.list.append(card);
    return { text: "", pre, grade, answer, same, detail, ended: false, graded: null };
  }

  function playedCard(name, role) {
    const card = make("article", "played");
    card.dataset.model = role;
    const header = make("header");
    const title = make("h2", "", role === "base" ? "Base" : about.base ? "Trained" : "Model");
    title.append(" ", make("span", "", name)); // the blank is for those who hear it
    const count = make("span");
    const verdict = make("p", "verdict", "Waiting …");
    const between = make("p", "between");
    const list = make("div", "attempts");
    header.append(title, count);
    card.append(header, verdict, between, list);
    at("results").append(card);
    return { card, name, role, count, verdict, between, list, attempts: [] };
  }

  const VERDICTS = {
    fixed: "Wrong, then right", broken: "Right, then wrong", kept_right: "Right and stayed right", kept_wrong: "Wrong and stayed wrong",
  };

  function judge(played) {
    const graded = played.attempts.map((attempt) => attempt.graded);
    if (!graded.length || graded.some((grade) => !grade || !grade.graded)) return "";
    const [first, last] = [graded[0].correct, graded[graded.length - 1].correct];
    const category = last ? (first ? "kept_right" : "fixed") : first ? "broken" : "kept_wrong";
    const told = graded.length > 1 ? VERDICTS[category] : last ? "Right" : "Wrong";
    played.card.classList.add(category);
    played.verdict.textContent = told;
    return told;
  }

  async function gradeAttempt(attempt, problem, finish, signal) {
    const told = await (await request("/page/grade", { problem, text: attempt.text, finish_reason: finish }, signal)).json();
    attempt.graded = told;
    attempt.grade.className = told.graded ? (told.correct ? "correct" : "not") : "muted";
    attempt.grade.textContent = told.graded ? told.outcome.replaceAll("_", " ") : "not graded";
    if (told.answer) attempt.answer.textContent = `answer ${told.answer}`;
    attempt.detail.textContent = told.detail;
    attempt.detail.hidden = !told.detail;
  }

  // One model's attempts, as they stream; graded where the problem is the task's.
  async function play(played, ask, signal) {
    const body = {
      model: played.name, messages: [{ role: "user", content: ask.prompt }], attempts: ask.attempts,
      temperature: ask.temperature, stream: true, stream_options: { include_usage: true },
    };
    if (ask.correction && ask.attempts > 1) body.correction_prompt = ask.correction;
    const grades = [];
    const asked = ask.correction || about.correction_prompt;
    if (ask.attempts > 1 && asked !== about.correction_prompt) played.between.textContent = `Asked again: ${asked}`;
    const current = (number) => {
      while (played.attempts.length < number) played.attempts.push(attemptCard(played, played.attempts.length + 1));
      return played.attempts[number - 1];
    };
    const add = (number, text) => {
      const attempt = current(number);
      const { pre } = attempt;
      const follows = pre.scrollTop + pre.clientHeight > pre.scrollHeight - 24; // unless somebody reads further up
      attempt.text += text;
      pre.append(text);
      if (follows) pre.scrollTop = pre.scrollHeight;
      played.verdict.textContent = `Writing attempt ${number} …`;
    };
    const end = (attempt, finish) => {
      attempt.ended = true;
      attempt.pre.setAttribute("aria-busy", "false");
      if (finish === "length") attempt.same.textContent = "cut off";
      compare(played.attempts);
      if (ask.problem) grades.push(gradeAttempt(attempt, ask.problem, finish, signal));
    };
    try {
      const reply = await request("/v1/chat/completions", body, signal);
      for await (const chunk of events(reply)) {
        if (chunk.usage) played.count.textContent = `${chunk.usage.completion_tokens.toLocaleString("en-US")} tokens written`;
        const choice = chunk.choices[0];
        if (!choice) continue;
        const early = choice.delta.selfcorrect;
        if (early?.content) add(early.attempt, early.content);
        if (early?.finish_reason) end(current(early.attempt), early.finish_reason);
        if (choice.delta.content) add(ask.attempts, choice.delta.content);
        if (choice.finish_reason) end(current(ask.attempts), choice.finish_reason);
      }
      played.verdict.textContent = ask.problem ? "Grading …" : "";
      await Promise.all(grades);
      played.verdict.textContent = "";
    } catch (error) {
      played.verdict.textContent = signal.aborted ? "Stopped" : "Not finished";
      throw error;
    } finally {
      for (const attempt of played.attempts) attempt.pre.setAttribute("aria-busy", "false");
    }
    const told = judge(played);
    return `${played.role === "base" ? "Base" : about.base ? "Trained" : "The model"}: ${told ? told.toLowerCase() : "done"}`;
  }

  function tell(text, bad) {
    at("told").textContent = text;
    at("told").classList.toggle("bad", Boolean(bad));
  }

  function picked() {
    return about.problems.find((problem) => problem.id === at("problem").value) || null;
  }

  // What the form asks for, as the task asks it.
  async function read(signal) {
    const attempts = Number(at("attempts").value);
    const temperature = Number(at("temperature").value);
    if (!Number.isInteger(attempts) || attempts < 1 || attempts > about.most_attempts) throw new Error(`Attempts must be a whole number from 1 to ${about.most_attempts}.`);
    if (!(temperature >= 0 && temperature <= 2) || at("temperature").value === "") throw new Error("Temperature must be from 0 to 2.");
    const problem = picked();
    const text = problem ? problem.id : at("text").value;
    if (!text.trim()) throw new Error("There is nothing to ask yet.");
    if (!about.task) return { attempts, temperature, prompt: text, problem: null, correction: null };
    const found = await (await request("/page/problem", { text }, signal)).json();
    return { attempts, temperature, prompt: found.prompt, problem: text, correction: about.own_words ? found.correction_prompt : null };
  }

  async function ask() {
    if (running) return;
    const control = running = new AbortController();
    at("go").disabled = true;
    at("stop").disabled = false;
    at("results").replaceChildren();
    tell("Asking …");
    const models = [[about.model, "trained"]];
    if (about.base && at("with-base").checked) models.unshift([about.base, "base"]);
    at("results").classList.toggle("alone", models.length === 1);
    try {
      const asked = await read(control.signal);
      const cards = models.map(([name, role]) => playedCard(name, role));
      const ends = await Promise.allSettled(cards.map((card) => play(card, asked, control.signal)));
      const failed = ends.find((end) => end.status === "rejected");
      if (failed) throw failed.reason;
      tell(`${ends.map((end) => end.value).join(". ")}.`);
    } catch (error) {
      if (control.signal.aborted) tell("Stopped.");
      else if (error.status === 401) askKey("The key is not this server's.");
      else tell(error.message, true);
    } finally {
      running = null;
      at("go").disabled = false;
      at("stop").disabled = true;
    }
  }

  function showProblem() {
    const problem = picked();
    at("text").readOnly = Boolean(problem);
    if (problem) at("text").value = problem.prompt;
    at("text-label").textContent = problem ? "As the model is asked" : about.task ? "Your own problem" : "Question";
    const hints = { countdown: "Numbers and a target, like 30 7 2 = 39.", math: "Any question; it has no reference, so it is not graded.", code: "The id of a problem, like those in the list." };
    at("text-hint").textContent = hints[about.task] || "The id of a problem, or one of your own where the task takes it.";
    at("text-hint").hidden = Boolean(problem) || !about.task;
  }

  function setUp() {
    at("name").textContent = about.model;
    document.title = `${about.model} · selfcorrect`;
    const how = at("how");
    how.replaceChildren("The model answers, is asked to look again, and answers once more. The words that ask, from ", `${about.source}: `, make("q", "", about.correction_prompt));
    const select = at("problem");
    const short = (text) => (text.length > 90 ? `${text.slice(0, 88)}…` : text);
    select.replaceChildren(...about.problems.map((problem) => {
      const option = make("option", "", short(problem.prompt.length > 90 ? problem.id : problem.prompt));
      option.value = problem.id;
      return option;
    }));
    const own = make("option", "", "Your own");
    own.value = "";
    select.append(own);
    at("picking").hidden = !about.problems.length;
    at("attempts").value = String(about.attempts);
    at("attempts").max = String(about.most_attempts);
    at("beside").hidden = !about.base;
    select.selectedIndex = 0;
    showProblem();
    at("ask").hidden = false;
  }

  function askKey(told) {
    at("key-form").hidden = false;
    at("ask").hidden = true;
    at("key-told").textContent = told;
    tell("");
    at("key").focus();
  }

  async function begin() {
    try {
      about = await (await request("/page/about")).json();
      at("key-form").hidden = true;
      setUp();
    } catch (error) {
      if (error.status === 401) askKey(secret ? "That is not its key." : "");
      else tell(error.message, true);
    }
  }

  document.addEventListener("DOMContentLoaded", () => {
    themeToggle();
    at("problem").addEventListener("change", () => {
      showProblem();
      if (!picked()) { at("text").value = ""; at("text").focus(); }
    });
    at("another").addEventListener("click", () => {
      const select = at("problem");
      select.selectedIndex = (select.selectedIndex + 1) % Math.max(1, about.problems.length);
      showProblem();
    });
    at("ask").addEventListener("submit", (event) => { event.preventDefault(); ask(); });
    at("stop").addEventListener("click", () => running?.abort());
    at("key-form").addEventListener("submit", (event) => { event.preventDefault(); secret = at("key").value; begin(); });
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape") running?.abort();
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !at("ask").hidden) { event.preventDefault(); ask(); }
    });
    begin();
  });
})();
