package app_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/access"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/operate"
	"github.com/millracehq/millrace/internal/httpapi"
	"github.com/millracehq/millrace/internal/telemetry"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/oidctest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// guarded is a service that requires credentials, with a real OpenID Connect provider.
type guarded struct {
	*apptest.Service

	t        *testing.T
	provider *oidctest.Provider
	log      *pgtest.Log
	requests int
}

const audience = "millrace"

func newGuarded(t *testing.T) *guarded {
	t.Helper()

	member := func(role string) oidctest.User {
		return oidctest.User{Audience: audience, Life: time.Minute, Claims: map[string]any{"realm_access": map[string]any{"roles": []string{"other", "millrace-" + role}}}}
	}
	expired, elsewhere := member("admin"), member("admin")
	expired.Life, elsewhere.Audience = -time.Minute, "another-application"

	g := &guarded{t: t, log: &pgtest.Log{}, provider: oidctest.Start(t, "", map[string]oidctest.User{
		"vera": member("viewer"), "olga": member("operator"), "ada": member("admin"), "nobody": member("nothing"),
		"late": expired, "lost": elsewhere, "token:ci": member("admin"), "millrace": member("admin"),
	})}

	g.Service = apptest.NewWithLog(t, pgtest.URL(t), telemetry.NewLogger(telemetry.Config{Level: "info", Format: "json"}, g.log), func(c *config.Config) {
		c.HTTP.Authentication, c.HTTP.TLS = httpapi.AuthenticationRequired, httpapi.TLSTerminated
		c.HTTP.OIDC.Issuer, c.HTTP.OIDC.Audience, c.HTTP.OIDC.RoleClaim = g.provider.Issuer, audience, "realm_access.roles"
		c.Payment.Stripe.WebhookSecret = "whsec_test"

		for _, role := range access.Roles {
			c.HTTP.OIDC.Roles = append(c.HTTP.OIDC.Roles, access.Mapping{Value: "millrace-" + string(role), Role: role})
		}
	})
	g.ExpectFailures()
	g.Run()

	return g
}

// token makes an API token.
func (g *guarded) token(name string, role access.Role) string {
	g.t.Helper()

	secret, err := access.CreateToken(g.t.Context(), g.Pool, name, role, time.Hour, "test")
	if err != nil {
		g.t.Fatal(err)
	}

	return secret
}

// ask sends a request. Unless from is set, each request comes from a different address
// behind a proxy, because failures are limited per address.
func (g *guarded) ask(method, path, bearer, body, from string) (code int, text string) {
	g.t.Helper()

	request, err := http.NewRequestWithContext(g.t.Context(), method, "http://"+g.HTTPAddr()+path, strings.NewReader(body))
	if err != nil {
		g.t.Fatal(err)
	}

	if g.requests++; from == "" {
		from = fmt.Sprintf("10.%d.%d.1", g.requests>>8, g.requests&255)
	}

	request.Header.Set("X-Forwarded-For", "192.0.2.1, "+from)
	request.Header.Set("X-Millrace-Operator", "mallory")
	request.Header.Set("Content-Type", "application/json")

	if bearer != "" {
		request.Header.Set("Authorization", "Bearer "+bearer)
	}

	response, err := http.DefaultClient.Do(request)
	if err != nil {
		g.t.Fatal(err)
	}
	defer response.Body.Close()

	data, err := io.ReadAll(response.Body)
	if err != nil {
		g.t.Fatal(err)
	}

	return response.StatusCode, string(data)
}

// route is an operation of the API with the role that it declares.
type route struct {
	method, path string
	role         access.Role
}

// routes returns all operations that the API describes, with values for parameters.
func (g *guarded) routes(bearer string) (list []route) {
	g.t.Helper()

	code, text := g.ask("GET", "/api/v1/openapi.json", bearer, "", "")

	var api struct {
		Paths map[string]map[string]struct {
			Security []map[string][]access.Role
		}
	}

	if err := json.Unmarshal([]byte(text), &api); err != nil || code != http.StatusOK {
		g.t.Fatalf("the description: %d %v", code, err)
	}

	values := strings.NewReplacer("/failed/{id}", "/failed/1", "/waiting/{id}", "/waiting/1", "/requests/{id}", "/requests/"+uuid.NewString(),
		"/conversations/{id}", "/conversations/"+uuid.NewString(), "{id}", "x", "{consumer}", "x", "{topic}", "x")

	for path, methods := range api.Paths {
		for method, operation := range methods {
			if len(operation.Security) != 1 || len(operation.Security[0]["bearer"]) != 1 || !slices.Contains(access.Roles, operation.Security[0]["bearer"][0]) {
				g.t.Errorf("%s %s declares no role: register it with httpapi.Get or httpapi.Post", method, path)

				continue
			}

			path := httpapi.Prefix + values.Replace(path)
			if strings.HasSuffix(path, "/failed/counts") {
				path += "?by=topic"
			}

			list = append(list, route{strings.ToUpper(method), path, operation.Security[0]["bearer"][0]})
		}
	}

	return list
}

// forged returns forgeries of a genuine token, none of which is validly signed.
func forged(token string) map[string]string {
	parts := strings.Split(token, ".")
	encode := base64.RawURLEncoding.EncodeToString
	payload := func(header string) string { return encode([]byte(header)) + "." + parts[1] }
	signed := payload(`{"alg":"HS256","typ":"JWT"}`)

	mac := hmac.New(sha256.New, []byte("a key that the service does not have"))
	mac.Write([]byte(signed))

	return map[string]string{
		"alg none":              payload(`{"alg":"none"}`) + ".",
		"alg None":              payload(`{"alg":"None"}`) + ".",
		"alg none, signed":      payload(`{"alg":"none"}`) + "." + parts[2],
		"no signature":          parts[0] + "." + parts[1] + ".",
		"a symmetric signature": signed + "." + encode(mac.Sum(nil)),
		"a changed payload":     parts[0] + "." + encode([]byte(`{"sub":"ada"}`)) + "." + parts[2],
		"half a token":          parts[0] + "." + parts[1],
	}
}

// Without a credential that is valid for this service, a caller gets nowhere, on any
// path. With one, a caller can do only what its role allows.
func TestNobodyGetsInWithoutAValidCredential(t *testing.T) {
	t.Parallel()

	g := newGuarded(t)
	admin := g.token("walker", access.Admin)
	routes := g.routes(admin)

	if len(routes) < 30 {
		t.Fatalf("the description has %d operations only", len(routes))
	}

	// Another provider, and an impostor that claims to be ours but has its own key.
	users := map[string]oidctest.User{"ada": {Audience: audience, Life: time.Minute, Claims: map[string]any{"realm_access": map[string]any{"roles": []string{"millrace-admin"}}}}}
	other, impostor := oidctest.Start(t, "", users), oidctest.Start(t, g.provider.Issuer, users)

	revoked, expired := g.token("revoked", access.Admin), g.token("expired", access.Admin)
	if _, err := access.RevokeToken(t.Context(), g.Pool, "revoked", "test"); err != nil {
		t.Fatal(err)
	}

	if _, err := g.Pool.Exec(t.Context(), `UPDATE api_tokens SET expires_at = now() WHERE name = 'expired'`); err != nil {
		t.Fatal(err)
	}

	wrong := forged(g.provider.Token("ada"))
	wrong["no credential"] = ""
	wrong["a wrong token"] = "mrt_" + strings.Repeat("A", 43)
	wrong["a token with more"] = admin + "x"
	wrong["a revoked token"] = revoked
	wrong["an expired token"] = expired
	wrong["another issuer"] = other.Token("ada")
	wrong["another key"] = impostor.Token("ada")
	wrong["another audience"] = g.provider.Token("lost")
	wrong["an expired token of the provider"] = g.provider.Token("late")
	wrong["the name of a token"] = g.provider.Token("token:ci")
	wrong["the name of the service"] = g.provider.Token("millrace")

	outside := []route{{"GET", "/", ""}, {"GET", "/nothing", ""}, {"GET", "/api/v1/nothing", ""}, {"GET", "/api/v1/openapi.json", ""}, {"GET", "/api/v1/openapi.yaml", ""}, {"GET", "/metrics", ""}, {"GET", "/statusz", ""}, {"GET", "/webhooks/stripe", ""}}

	for name, credential := range wrong {
		for _, r := range append(routes, outside...) {
			if code, text := g.ask(r.method, r.path, credential, "{}", ""); code != http.StatusUnauthorized {
				t.Errorf("%s %s with %s: got %d %s", r.method, r.path, name, code, text)
			}
		}
	}

	if code, _ := g.ask("POST", "/webhooks/stripe", "", "{}", ""); code != http.StatusBadRequest {
		t.Errorf("a webhook without a signature: got %d", code)
	}

	if code, _ := g.ask("GET", "/api/v1/version", g.provider.Token("nobody"), "", ""); code != http.StatusForbidden {
		t.Errorf("somebody without a role: got %d", code)
	}

	metrics := strings.Join(scrape(t, g.Service), "\n")
	for _, reason := range []string{
		`"none",reason="missing"`, `"api_token",reason="unknown"`, `"api_token",reason="revoked"`, `"api_token",reason="expired"`,
		`"signed_token",reason="invalid"`, `"signed_token",reason="expired"`, `"signed_token",reason="no_role"`, `"other",reason="unknown"`,
	} {
		if !strings.Contains(metrics, `millrace_logins_refused_total{credential=`+reason+`} `) {
			t.Errorf("no metric counts %s", reason)
		}
	}

	if n := strings.Count(metrics, "millrace_logins_refused_total{"); n != 8 {
		t.Errorf("rejected log-ins have %d series, expected 8", n)
	}

	if text := g.log.String(); strings.Contains(text, revoked) || !strings.Contains(text, "the token revoked is revoked") || !strings.Contains(text, `"from":"10.`) {
		t.Error("the log does not say who was refused and why, or has the token")
	}
}

func TestEachRoleDoesOnlyWhatItAllows(t *testing.T) {
	t.Parallel()

	g := newGuarded(t)
	routes := g.routes(g.token("walker", access.Admin))

	for role, credentials := range map[access.Role][]string{
		"":              {g.provider.Token("nobody")},
		access.Viewer:   {g.token("viewer", access.Viewer), g.provider.Token("vera")},
		access.Operator: {g.token("operator", access.Operator), g.provider.Token("olga")},
		access.Admin:    {g.token("admin", access.Admin), g.provider.Token("ada")},
	} {
		for _, credential := range credentials {
			for _, r := range routes {
				code, text := g.ask(r.method, r.path, credential, "{}", "")

				if allowed := role.Allows(r.role); code == http.StatusUnauthorized || allowed == (code == http.StatusForbidden) || code >= 500 {
					t.Errorf("%s %s, which needs %s, as %q: got %d %s", r.method, r.path, r.role, role, code, text)
				}
			}
		}
	}
}

func TestActionsAreRecordedUnderTheNameThatWasProved(t *testing.T) {
	t.Parallel()

	g := newGuarded(t)

	for name, credential := range map[string]string{"token:ops": g.token("ops", access.Operator), "olga": g.provider.Token("olga")} {
		consumer := map[string]string{"token:ops": "account.create", "olga": "account.update"}[name]
		if code, text := g.ask("POST", "/api/v1/consumers/"+consumer+"/pause", credential, `{"why":"test"}`, ""); code != http.StatusOK {
			t.Fatal(text)
		}

		if who := apptest.Value[string](g.Service, `SELECT who FROM operator_actions ORDER BY id DESC LIMIT 1`); who != name {
			t.Errorf("recorded as %s, expected %s", who, name)
		}
	}
}

func TestFailedLogInsAreLimitedByAddress(t *testing.T) {
	t.Parallel()

	g := newGuarded(t)
	valid, wrong := g.token("valid", access.Viewer), "mrt_"+strings.Repeat("A", 43)

	for range 10 {
		if code, text := g.ask("GET", "/api/v1/version", wrong, "", "203.0.113.7"); code != http.StatusUnauthorized {
			t.Fatalf("got %d %s", code, text)
		}
	}

	for _, c := range []struct {
		from, credential string
		want             int
	}{
		{"203.0.113.7", wrong, http.StatusTooManyRequests},
		{"203.0.113.7", valid, http.StatusTooManyRequests},
		{"203.0.113.7:51234", valid, http.StatusTooManyRequests},
		{"203.0.113.8", valid, http.StatusOK},
		{"203.0.113.9:51234", valid, http.StatusOK},
	} {
		if code, text := g.ask("GET", "/api/v1/version", c.credential, "", c.from); code != c.want {
			t.Errorf("from %s: got %d, expected %d: %s", c.from, code, c.want, text)
		}
	}

	metrics := scrape(t, g.Service)
	for _, want := range []string{`reason="unknown"} 10`, `reason="limited"} 3`} {
		if want = `millrace_logins_refused_total{credential="api_token",` + want; !slices.Contains(metrics, want) {
			t.Errorf("no metric says %s", want)
		}
	}
}

// A viewer sees what is wrong, but nothing about the people it concerns.
// A browser that leaves a page ends its requests. That is no error, and no failed log-in.
func TestAClientThatDisconnectsDuringTheCheckIsNoError(t *testing.T) {
	t.Parallel()

	g := newGuarded(t)
	token := g.token("ci", access.Viewer)

	tx, err := g.Pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.Background())

	if _, err := tx.Exec(t.Context(), `LOCK TABLE api_tokens`); err != nil {
		t.Fatal(err)
	}

	ctx, disconnect := context.WithCancel(t.Context())
	defer disconnect()

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+g.HTTPAddr()+"/api/v1/version", nil)
	if err != nil {
		t.Fatal(err)
	}

	request.Header.Set("Authorization", "Bearer "+token)

	waiting := func() int {
		return apptest.Value[int](g.Service, `SELECT count(*) FROM pg_locks WHERE relation = 'api_tokens'::regclass AND NOT granted`)
	}
	done := make(chan error, 1)

	go func() {
		response, err := http.DefaultClient.Do(request)
		if err == nil {
			_ = response.Body.Close()
		}

		done <- err
	}()

	pgtest.Eventually(t, "the token is being checked", func() bool { return waiting() == 1 })
	disconnect()

	if err := <-done; err == nil {
		t.Error("the request was answered")
	}

	pgtest.Eventually(t, "the check has ended", func() bool { return waiting() == 0 })

	if err := tx.Rollback(t.Context()); err != nil { // it holds a connection of the service
		t.Fatal(err)
	}

	g.Stop() // what is logged late is logged now

	if log := g.log.String(); strings.Contains(log, "could not be checked") || strings.Contains(log, "log-in refused") {
		t.Errorf("the log has %s", log)
	}
}

func TestPersonalDataIsHiddenFromViewers(t *testing.T) {
	t.Parallel()

	const name, mail = "Ädelheid Quastenberg", "adelheid@home.example"

	g := newGuarded(t)
	viewer, operator := g.token("viewer", access.Viewer), g.token("operator", access.Operator)
	id := event.NewID()

	err := g.Failed.Stop(t.Context(), failed.Entry{
		Consumer: "account.create", Topic: "user.created", MessageID: id, Origin: "test", Key: "u", Headers: event.Headers{"name": name},
		Payload: fmt.Appendf(nil, `{"user":{"id":"u","name":%q,"email":%q}}`, name, mail), Reason: event.ReasonInvalid, Error: fmt.Sprintf("user.email: is %q of %q", mail, name),
	})
	if err != nil {
		t.Fatal(err)
	}

	body, _ := json.Marshal(map[string]any{"why": "typing mistake of " + name, "payload": map[string]string{"text": fmt.Sprintf(`{"user":{"id":"u","name":%q,"email":"adelheid@work.example"}}`, name)}})

	if code, text := g.ask("PATCH", "/api/v1/failed/1", operator, string(body), ""); code != http.StatusOK || !strings.Contains(text, mail) {
		t.Fatalf("an operator does not see the message: %d %s", code, text)
	}

	if _, err := g.Pool.Exec(t.Context(), `INSERT INTO notifications (message_id, user_id, channel, status, answer, sent_at) VALUES ($1, 'u', 'email', 'sent', $2, now())`, event.NewID(), "250 queued for "+mail); err != nil {
		t.Fatal(err)
	}

	g.writeFreely(operator, name+" of "+mail+" called")

	paths := []string{"/api/v1/conversations/" + id.String()}

	for _, r := range g.routes(viewer) {
		if r.method == "GET" && r.role == access.Viewer {
			paths = append(paths, r.path)
		}
	}

	seen := 0

	for _, path := range paths {
		_, text := g.ask("GET", path, viewer, "", "")
		if strings.Contains(text, "adelheid") || strings.Contains(text, "Quastenberg") {
			t.Errorf("%s shows personal data to a viewer: %s", path, text)
		}

		if _, text := g.ask("GET", path, operator, "", ""); strings.Contains(text, "adelheid") {
			seen++
		}
	}

	if seen < 8 {
		t.Errorf("an operator sees the data at %d paths only, so the test looks in the wrong places", seen)
	}
}

// writeFreely enters text wherever free text is possible: as the reason for a pause, for
// a cancelled order, and for a failed cancellation.
func (g *guarded) writeFreely(operator, text string) {
	g.t.Helper()

	body, _ := json.Marshal(map[string]string{"why": text})
	if code, got := g.ask("POST", "/api/v1/consumers/fulfilment.charge/pause", operator, string(body), ""); code != http.StatusOK || !strings.Contains(got, text) {
		g.t.Fatalf("got %d %s", code, got)
	}

	g.Seed()
	reserve(g.t, g.Service, "x")

	cancel, _ := json.Marshal(map[string]string{"order_id": "x", "reason": text})
	g.Publish("orders.cancel.requested", string(cancel))
	g.WaitForOrder("x", "cancelled")

	err := g.Failed.Stop(g.t.Context(), failed.Entry{
		Consumer: "fulfilment.cancel", Topic: "orders.cancel.requested", MessageID: event.NewID(), Origin: "test", Key: "z", Headers: event.Headers{},
		Payload: cancel, Reason: event.ReasonFailed, Error: "a bug",
	})
	if err != nil {
		g.t.Fatal(err)
	}
}

// Not everyone may read what operators write: the probes' listener requires no credential,
// so it says that a consumer is paused, but not by whom or why. A command reads the
// database and says both.
func TestTheProbesDoNotSayWhatOperatorsWrite(t *testing.T) {
	t.Parallel()

	g := newGuarded(t)
	g.writeFreely(g.token("quastenberg", access.Operator), "adelheid@home.example called")

	paused := func(text string) bool {
		return strings.Contains(text, "fulfilment.charge") && strings.Contains(text, "paused by an operator")
	}

	pgtest.Eventually(t, "the pause is measured", func() bool {
		_, text := page(t, g.Service, "/readyz")
		_, own := page(t, g.Service, "/statusz") // what the consumers themselves have read

		return paused(text) && strings.Contains(text, "stopped message") && paused(own)
	})

	for _, path := range []string{"/livez", "/readyz", "/startupz", "/statusz", "/metrics"} {
		_, text := page(t, g.Service, path)
		if strings.Contains(text, "adelheid") || strings.Contains(text, "quastenberg") {
			t.Errorf("%s shows everybody what an operator wrote: %s", path, text)
		}
	}

	status := g.Operator.Status(t.Context(), g.HealthAddr())

	if text := fmt.Sprint(status.Troubles); status.Service == nil || !strings.Contains(text, "paused by token:quastenberg: adelheid@home.example called") || strings.Contains(text, "paused by an operator") {
		t.Errorf("millrace status: %s", text)
	}

	i := slices.IndexFunc(status.Consumers, func(c operate.Consumer) bool { return c.Consumer == "fulfilment.charge" })
	if text := status.Consumers[i].Describe(time.Time.String); !strings.Contains(text, "by token:quastenberg") || !strings.Contains(text, "adelheid") {
		t.Errorf("millrace consumers list: %s", text)
	}
}
