package console_test

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/activity"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// browser is a person's browser on the console of a service.
type browser struct {
	*apptest.Service

	t      *testing.T
	client *http.Client
}

// shown is a page in a browser.
type shown struct {
	status int
	header http.Header
	url    *url.URL
	html   string
}

// open opens a browser on a new service.
func open(t *testing.T, changes ...func(*config.Config)) *browser {
	t.Helper()

	s := apptest.Start(t, changes...)
	s.ExpectFailures()

	return newBrowser(t, s)
}

func newBrowser(t *testing.T, s *apptest.Service) *browser {
	t.Helper()

	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}

	return &browser{Service: s, t: t, client: &http.Client{Jar: jar, Timeout: 20 * time.Second}}
}

// guarded requires a login.
func guarded(c *config.Config) { c.HTTP.Authentication = httpapi.AuthenticationRequired }

// as returns another browser in which somebody with a role is logged in.
func (b *browser) as(role access.Role) *browser {
	b.t.Helper()

	other := newBrowser(b.t, b.Service)
	if p := other.post("/console/login", "token", b.token(string(role), role)); p.status != http.StatusOK {
		b.t.Fatalf("logging in: %d %s", p.status, p.html)
	}

	return other
}

func (b *browser) token(name string, role access.Role) string {
	b.t.Helper()

	secret, err := access.CreateToken(b.t.Context(), b.Pool, name, role, time.Hour, "test")
	if err != nil {
		b.t.Fatal(err)
	}

	return secret
}

// send sends a request; headers alternates names and values.
func (b *browser) send(method, path string, body io.Reader, headers ...string) shown {
	b.t.Helper()

	request, err := http.NewRequestWithContext(b.t.Context(), method, "http://"+b.HTTPAddr()+path, body)
	if err != nil {
		b.t.Fatal(err)
	}

	request.Header.Set("Accept", "text/html")

	for i := 0; i+1 < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}

	response, err := b.client.Do(request)
	if err != nil {
		b.t.Fatal(err)
	}
	defer response.Body.Close()

	p := b.read(response)
	b.check(method+" "+path, p)

	return p
}

// read returns the page that a response has.
func (b *browser) read(response *http.Response) shown {
	b.t.Helper()

	data, err := io.ReadAll(response.Body)
	if err != nil {
		b.t.Fatal(err)
	}

	return shown{response.StatusCode, response.Header, response.Request.URL, string(data)}
}

// inline finds what the policy of the console forbids.
var inline = regexp.MustCompile(`(?i)<script(>| [^>]*>[^<])|<style|<[a-z][^<>]*\s(style|on[a-z]+)=`)

// check checks what holds for every page.
func (b *browser) check(what string, p shown) {
	b.t.Helper()

	if !strings.HasPrefix(p.header.Get("Content-Type"), "text/html") || p.url.Host != b.HTTPAddr() {
		return // another site, or no page
	}

	if policy := p.header.Get("Content-Security-Policy"); !strings.Contains(policy, "default-src 'none'") || strings.Contains(policy, "unsafe") {
		b.t.Errorf("%s: policy is %q", what, policy)
	}

	if found := inline.FindString(p.markup()); found != "" {
		b.t.Errorf("%s: the page has %q, which the policy forbids", what, found)
	}

	whole := strings.Count(p.html, "<h1>") == 1 && strings.Contains(p.html, `<html lang="en">`) && strings.Contains(p.html, "<main ")
	if strings.HasPrefix(p.html, "<!doctype") && !whole {
		b.t.Errorf("%s: the page lacks its language, its main part or its only heading", what)
	}

	if len(p.html) > 100_000 {
		b.t.Errorf("%s: the page has %d bytes, expected less than 100 KB", what, len(p.html))
	}
}

func (b *browser) get(path string) shown { b.t.Helper(); return b.send("GET", path, nil) }

// post sends a form; fields alternates names and values.
func (b *browser) post(path string, fields ...string) shown {
	b.t.Helper()

	form := url.Values{}
	for i := 0; i+1 < len(fields); i += 2 {
		form.Add(fields[i], fields[i+1])
	}

	return b.send("POST", path, strings.NewReader(form.Encode()), "Content-Type", "application/x-www-form-urlencoded")
}

// values matches the values of attributes and what is in editors, which are exact.
var values = regexp.MustCompile(`"[^"]*"|(?s:<textarea[^>]*>.*?</textarea>)`)

// markup returns a page without them.
func (p shown) markup() string { return values.ReplaceAllString(p.html, `""`) }

// has fails the test unless the page has each of the texts.
func (p shown) has(t *testing.T, texts ...string) {
	t.Helper()

	for _, text := range texts {
		if !strings.Contains(p.html, text) {
			t.Errorf("%s: the page lacks %q:\n%s", p.url, text, p.html)
		}
	}
}

// lacks fails the test if the page has one of the texts.
func (p shown) lacks(t *testing.T, texts ...string) {
	t.Helper()

	for _, text := range texts {
		if strings.Contains(p.html, text) {
			t.Errorf("%s: the page has %q:\n%s", p.url, text, p.html)
		}
	}
}

func TestTheConsoleOpensWithoutALogInOnLoopback(t *testing.T) {
	t.Parallel()

	b := open(t)

	p := b.get("/")
	if p.url.Path != "/console/now" || p.status != http.StatusOK {
		t.Fatalf("/ leads to %s, %d", p.url, p.status)
	}

	p.has(t, "<title>Now - Millrace</title>", `aria-current="page"`, "fulfilment.charge", "Everything works.")
	p.lacks(t, "Log out")

	if p := b.get("/console/nothing"); p.status != http.StatusNotFound {
		t.Errorf("a page that does not exist: %d", p.status)
	}

	for _, path := range regexp.MustCompile(`/console/assets/[^"]+`).FindAllString(p.html, -1) {
		if a := b.get(path); a.status != http.StatusOK || !strings.Contains(a.header.Get("Cache-Control"), "immutable") || a.header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %d %v", path, a.status, a.header)
		}
	}
}

func TestAConsoleThatIsSwitchedOffIsNotServed(t *testing.T) {
	t.Parallel()

	b := open(t, func(c *config.Config) { c.HTTP.Console = false }, guarded)
	token := b.token("ada", access.Admin)

	for _, path := range []string{"/", "/console", "/console/", "/console/now", "/console/login", "/console/assets/console.css"} {
		if p := b.send("GET", path, nil, "Authorization", "Bearer "+token); p.status != http.StatusNotFound {
			t.Errorf("%s: %d", path, p.status)
		}
	}

	if p := b.send("GET", "/api/v1/version", nil, "Cookie", "millrace="+token); p.status != http.StatusUnauthorized {
		t.Errorf("a session without the console: %d", p.status)
	}
}

func TestABrowserLogsInWithAToken(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	token := b.token("olga", access.Operator)

	p := b.get("/console/now?paused=1")
	if p.url.Path != "/console/login" || p.url.Query().Get("next") != "/console/now?paused=1" {
		t.Fatalf("without a session: sent to %s", p.url)
	}

	p.has(t, `<label for="token">`, `value="/console/now?paused=1"`)
	p.lacks(t, "fulfilment.charge")

	if p := b.post("/console/login", "token", "mrt_wrong", "next", "/console/now"); p.status != http.StatusUnauthorized {
		t.Errorf("a wrong token: %d", p.status)
	} else {
		p.has(t, "invalid, expired or revoked")
	}

	if p := b.post("/console/login", "token", ""); p.status != http.StatusUnprocessableEntity {
		t.Errorf("no token: %d", p.status)
	}

	p = b.post("/console/login", "token", " "+token+"\n", "next", "/console/now?paused=1")
	if p.url.RequestURI() != "/console/now?paused=1" || p.status != http.StatusOK {
		t.Fatalf("after the log-in: %s %d", p.url, p.status)
	}

	p.has(t, "token:olga (operator)")

	if p := b.get("/api/v1/version"); p.status != http.StatusOK {
		t.Errorf("the API in the same browser: %d", p.status)
	}

	if _, err := access.RevokeToken(t.Context(), b.Pool, "olga", "test"); err != nil {
		t.Fatal(err)
	}

	if p := b.get("/console/now"); p.url.Path != "/console/login" {
		t.Errorf("after the token was revoked: %s", p.url)
	}
}

func TestASessionIsACookieThatOnlyThisSiteSends(t *testing.T) {
	t.Parallel()

	for tls, want := range map[string]string{httpapi.TLSNone: "millrace=", httpapi.TLSTerminated: "__Host-millrace="} {
		b := open(t, guarded, func(c *config.Config) { c.HTTP.TLS = tls })
		b.client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

		p := b.post("/console/login", "token", b.token("olga", access.Operator), "next", "https://evil.example/")

		cookie := p.header.Get("Set-Cookie")
		if !strings.HasPrefix(cookie, want) || !strings.Contains(cookie, "; Path=/; HttpOnly;") || !strings.Contains(cookie, "SameSite=Strict") ||
			strings.Contains(cookie, "Secure") != (tls != httpapi.TLSNone) {
			t.Errorf("%s: the cookie is %q", tls, cookie)
		}

		if p.header.Get("Location") != "/console/" {
			t.Errorf("a log-in leads to another site: %s", p.header.Get("Location"))
		}
	}
}

func TestAnotherSiteCannotAct(t *testing.T) {
	t.Parallel()

	b := open(t, guarded).as(access.Admin)

	for _, path := range []string{"/console/login", "/console/logout"} {
		if p := b.send("POST", path, strings.NewReader(""), "Sec-Fetch-Site", "cross-site"); p.status != http.StatusForbidden {
			t.Errorf("%s from another site: %d", path, p.status)
		}
	}

	if p := b.get("/console/now"); p.status != http.StatusOK || p.url.Path != "/console/now" {
		t.Errorf("another site has ended the session: %s", p.url)
	}

	if p := b.post("/console/logout"); p.url.Path != "/console/login" {
		t.Errorf("a log-out leads to %s", p.url)
	}

	if p := b.get("/console/now"); p.url.Path != "/console/login" {
		t.Errorf("after the log-out: %s", p.url)
	}
}

// follow opens the stream of a page and returns a function that waits for the next event
// with a name.
func (b *browser) follow(path string) (next func(name string) string) {
	b.t.Helper()

	request, err := http.NewRequestWithContext(b.t.Context(), http.MethodGet, "http://"+b.HTTPAddr()+path, nil)
	if err != nil {
		b.t.Fatal(err)
	}

	request.Header.Set("Accept", "text/event-stream")

	response, err := b.client.Do(request)
	if err != nil || response.Header.Get("Content-Type") != "text/event-stream" {
		b.t.Fatalf("the stream of %s: %v %v", path, err, response)
	}

	b.t.Cleanup(func() { _ = response.Body.Close() })

	lines := bufio.NewScanner(response.Body)
	lines.Buffer(nil, 1<<20)

	return func(name string) string {
		b.t.Helper()

		var event string

		var data []string

		for lines.Scan() {
			line := lines.Text()

			switch {
			case strings.HasPrefix(line, "event: "):
				event, data = line[len("event: "):], nil
			case strings.HasPrefix(line, "data: "):
				data = append(data, line[len("data: "):])
			case line == "" && event == name:
				return strings.Join(data, "\n")
			}
		}

		b.t.Fatalf("the stream ended before the event %s: %v", name, lines.Err())

		return ""
	}
}

func TestNowShowsTheReleasesOfAllReplicas(t *testing.T) {
	t.Parallel()

	url := pgtest.URL(t)

	var b *browser

	for _, release := range []string{"1.4.0", "1.4.1"} {
		s := apptest.New(t, url, func(c *config.Config) { c.Outbox.Release = release })
		s.Run()

		b = newBrowser(t, s)
	}

	pgtest.Eventually(t, "both are seen", func() bool { return strings.Contains(b.get("/console/now").html, "1 x 1.4.0, 1 x 1.4.1") })
}

func TestAPageIsUpdatedWhileSomebodyLooks(t *testing.T) {
	t.Parallel()

	b := open(t)
	b.get("/console/now").has(t, `sse-connect="/console/now"`, ">Pause<")

	paused := b.get("/console/now?paused=1")
	paused.has(t, ">Resume<", `href="/console/now"`)
	paused.lacks(t, "sse-connect")

	next := b.follow("/console/now")
	if html := next("update"); !strings.Contains(html, "Everything works.") {
		t.Errorf("the first update: %s", html)
	}

	if _, err := b.Router.Pause(t.Context(), "fulfilment.charge", 0, actor("ada", "provider moves")); err != nil {
		t.Fatal(err)
	}

	for html := ""; !strings.Contains(html, "paused by ada"); {
		html = next("update")
	}
}

func TestViewersDoNotSeeWhoPausedAConsumerAndWhy(t *testing.T) {
	t.Parallel()

	b := open(t, guarded)
	if _, err := b.Router.Pause(t.Context(), "account.create", 0, actor("ada", "Mr Miller called")); err != nil {
		t.Fatal(err)
	}

	b.as(access.Operator).get("/console/now").has(t, "paused by ada", "Mr Miller called")

	p := b.as(access.Viewer).get("/console/now")
	p.has(t, "paused by an operator")
	p.lacks(t, "Mr Miller")
}

func TestVendoredScriptsAreWhatTheirPackagesHave(t *testing.T) {
	t.Parallel()

	list, err := os.ReadFile("assets/vendor.sum")
	if err != nil {
		t.Fatal(err)
	}

	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)

		data, err := os.ReadFile("assets/" + fields[1])
		if err != nil {
			t.Fatal(err)
		}

		if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != fields[0] {
			t.Errorf("assets/%s differs from %s", fields[1], fields[2])
		}
	}
}

func actor(who, why string) activity.Actor { return activity.Actor{Who: who, Why: why} }
