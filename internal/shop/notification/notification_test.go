package notification_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	netmail "net/mail"
	"strconv"
	"strings"
	"testing"
	"time"

	standardwebhooks "github.com/standard-webhooks/standard-webhooks/libraries/go"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
	"github.com/millracehq/millrace/internal/shop/notification"
	"github.com/millracehq/millrace/internal/test/mailtest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

func config(m *mailtest.Server) notification.Config {
	cfg := notification.DefaultConfig()
	cfg.Email.Host, cfg.Email.Port, cfg.Email.CAFile = "127.0.0.1", m.Port, m.CAFile
	cfg.Email.User, cfg.Email.Password, cfg.Email.From = mailtest.User, mailtest.Password, "Shop <shop@example.com>"

	return cfg
}

func directory(context.Context, postgres.Querier, []string) (map[string]string, error) {
	return map[string]string{"alice": "alice@example.com", "erased": ""}, nil
}

func newService(t *testing.T, cfg notification.Config) *notification.Service {
	t.Helper()

	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}

	s, err := notification.NewService(cfg, nil, notification.Directory{Emails: directory, Creations: []string{"user.created"}}, pgtest.Logger(t))
	if err != nil {
		t.Fatal(err)
	}

	return s
}

// send sends an e-mail as the consumer does; nil means that it was skipped.
func send(t *testing.T, s *notification.Service, e event.Event[notification.EmailDue]) (*string, error) {
	t.Helper()

	events := []event.Event[notification.EmailDue]{e}

	verdicts, err := s.AdmitEmail(t.Context(), nil, events)
	if err != nil {
		return nil, err
	}

	if errors.Is(verdicts[0], event.ErrSkip) {
		return nil, nil //nolint:nilnil // a test
	}

	if verdicts[0] != nil {
		return nil, verdicts[0]
	}

	got, err := s.SendEmail(t.Context(), events[0])

	return &got, err
}

// routed returns a request as it reaches its channel.
func routed[P notification.Due](t *testing.T, userID string, channel notification.Channel) event.Event[P] {
	t.Helper()

	p := notification.Requested{UserID: userID, Content: "Welcome <Alice> & Bob!", Channel: channel}

	out, err := (&notification.Service{}).Route(t.Context(), nil, []event.Event[notification.Requested]{{Meta: event.Start(p).Meta, Payload: p}})
	if err != nil {
		t.Fatal(err)
	}

	// Encode and decode, as if a broker were in between.
	data, err := event.Encode(out[0].Payload)
	if err != nil {
		t.Fatal(err)
	}

	due, err := event.Decode[P](data)
	if err != nil || due.Channel() != channel {
		t.Fatalf("%s became %+v, %v", channel, due, err)
	}

	return event.Event[P]{Meta: out[0].Meta, Payload: due}
}

func email(t *testing.T, userID string) event.Event[notification.EmailDue] {
	t.Helper()

	return routed[notification.EmailDue](t, userID, notification.Email)
}

func posted(t *testing.T) event.Event[notification.WebhookDue] {
	t.Helper()

	return routed[notification.WebhookDue](t, "alice", notification.Webhook)
}

func TestAnEmailIsSentOverTLSWithAStableID(t *testing.T) {
	t.Parallel()

	server := mailtest.NewServer(t)
	s := newService(t, config(server))
	e := email(t, "alice")

	for range 2 { // the receiver must recognise the second as a duplicate
		got, err := send(t, s, e)
		if err != nil || got == nil || !strings.Contains(*got, "OK") {
			t.Fatalf("got %+v, %v", got, err)
		}
	}

	received := server.Received()
	if len(received) != 2 {
		t.Fatalf("received %d e-mails", len(received))
	}

	for _, text := range received {
		mail, err := netmail.ReadMessage(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}

		if id := mail.Header.Get("Message-Id"); id != "<"+e.ID.String()+"@example.com>" {
			t.Errorf("the id is %s", id)
		}

		if mail.Header.Get("To") != "<alice@example.com>" || mail.Header.Get("Subject") != "Welcome <Alice> & Bob!" {
			t.Errorf("got %v", mail.Header)
		}

		if !strings.Contains(text, "Welcome <Alice> & Bob!") || !strings.Contains(text, "Welcome &lt;Alice&gt; &amp; Bob!") {
			t.Errorf("a part is missing or not escaped: %s", text)
		}
	}
}

func TestErrorsOfTheMailServer(t *testing.T) {
	t.Parallel()

	server := mailtest.NewServer(t)
	s := newService(t, config(server))

	var (
		later    *event.LaterError
		rejected *event.RejectError
		away     *event.UnavailableError
	)

	server.Refuse(451, [3]int{4, 7, 1}, "greylisted")
	if _, err := send(t, s, email(t, "alice")); !errors.As(err, &later) || !strings.Contains(err.Error(), "greylisted") {
		t.Errorf("temporary: got %v", err)
	}

	server.Refuse(550, [3]int{5, 1, 1}, "no such mailbox")
	if _, err := send(t, s, email(t, "alice")); !errors.As(err, &rejected) || !strings.Contains(err.Error(), "no such mailbox") {
		t.Errorf("permanent: got %v", err)
	}

	// Errors are logged and stored, so they must not contain the address.
	server.Refuse(550, [3]int{5, 1, 1}, "<Alice@Example.com>: no such mailbox")
	if _, err := send(t, s, email(t, "alice")); err == nil || strings.Contains(strings.ToLower(err.Error()), "alice@") ||
		!strings.HasSuffix(err.Error(), `550 "5.1.1 <(address)>: no such mailbox"`) {
		t.Errorf("the address: got %v", err)
	}

	// A server that rejects the sender accepts no e-mail at all.
	server.RefuseSender(550, [3]int{5, 7, 1}, "sender not allowed")
	if _, err := send(t, s, email(t, "alice")); !errors.As(err, &away) || !strings.Contains(err.Error(), "sender not allowed") {
		t.Errorf("sender: got %v", err)
	}

	server.RefuseSender(0, [3]int{}, "")

	// A wrong password is not the message's fault.
	cfg := config(server)
	cfg.Email.Password = "wrong"

	if _, err := send(t, newService(t, cfg), email(t, "alice")); !errors.As(err, &away) {
		t.Errorf("wrong password: got %v", err)
	}

	// Nor is an unreachable server, or one with an untrusted certificate.
	cfg = config(server)
	cfg.Email.CAFile = ""

	if _, err := send(t, newService(t, cfg), email(t, "alice")); !errors.As(err, &away) || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown certificate: got %v", err)
	}

	cfg.Email.Port = 1
	if _, err := send(t, newService(t, cfg), email(t, "alice")); !errors.As(err, &away) {
		t.Errorf("no server: got %v", err)
	}
}

func TestAServerWithoutTLSReceivesNeitherPasswordNorEmail(t *testing.T) {
	t.Parallel()

	server := mailtest.NewPlainServer(t)

	var away *event.UnavailableError
	if _, err := send(t, newService(t, config(server)), email(t, "alice")); !errors.As(err, &away) || !strings.Contains(err.Error(), "STARTTLS") {
		t.Errorf("got %v", err)
	}

	if n := len(server.Received()); n != 0 || server.Logins() != 0 {
		t.Errorf("received %d e-mails and %d passwords", n, server.Logins())
	}

	// TLS is off only if it is configured to be.
	cfg := config(server)
	cfg.Email.TLS, cfg.Email.User, cfg.Email.Password = "none", "", ""

	if _, err := send(t, newService(t, cfg), email(t, "alice")); err != nil || len(server.Received()) != 1 {
		t.Errorf("without TLS: got %v", err)
	}
}

func TestContentCannotAddHeaders(t *testing.T) {
	t.Parallel()

	server := mailtest.NewServer(t)
	s := newService(t, config(server))

	for _, content := range []string{
		"Welcome Eve\r\nBcc: victim@example.com\r\n\r\nText", "Eve\rBcc: victim@example.com", "Eve\nBcc: victim@example.com",
		"=?utf-8?q?Eve=0D=0ABcc:_victim@example.com?=", "Eve\u2028Bcc: victim@example.com", "Eve\x00Bcc: victim@example.com",
	} {
		e := email(t, "alice")
		e.Payload.Content = content

		if _, err := send(t, s, e); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}

	received := server.Received()
	if len(received) != 6 {
		t.Fatalf("received %d e-mails", len(received))
	}

	for _, text := range received {
		mail, err := netmail.ReadMessage(strings.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}

		if mail.Header.Get("Bcc") != "" || len(mail.Header["To"]) != 1 || len(mail.Header["Subject"]) != 1 {
			t.Errorf("got %v", mail.Header)
		}
	}
}

func TestUsersWithoutAnAddress(t *testing.T) {
	t.Parallel()

	s := newService(t, notification.DefaultConfig())

	unknown := email(t, "nobody")

	var early *event.EarlyError
	if _, err := send(t, s, unknown); !errors.As(err, &early) {
		t.Errorf("a user who may still be created: got %v", err)
	}

	unknown.Overdue = true

	var rejected *event.RejectError
	if _, err := send(t, s, unknown); !errors.As(err, &rejected) {
		t.Errorf("unknown user: got %v", err)
	}

	if got, err := send(t, s, email(t, "erased")); err != nil || got != nil {
		t.Errorf("erased user: got %+v, %v", got, err)
	}

	if _, err := s.PostWebhook(t.Context(), posted(t)); !errors.As(err, &rejected) {
		t.Errorf("webhook without a URL: got %v", err)
	}

	if got, err := s.WriteLog(t.Context(), routed[notification.LogDue](t, "alice", notification.Log)); err != nil || got != "logged" {
		t.Errorf("log: got %q, %v", got, err)
	}
}

const secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"

// attempt is a webhook that arrived.
type attempt struct {
	http.Header

	body string
}

// receiver verifies webhooks as the standard's own library does.
func receiver(t *testing.T, answer func(w http.ResponseWriter)) (notification.Config, *[]attempt) {
	t.Helper()

	verifier, err := standardwebhooks.NewWebhook(secret)
	if err != nil {
		t.Fatal(err)
	}

	var attempts []attempt

	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if err := verifier.Verify(body, r.Header); err != nil || !strings.Contains(string(body), `"user_id":"alice"`) {
			t.Errorf("%v: %s", err, body)
		}

		attempts = append(attempts, attempt{r.Header, string(body)})

		answer(w)
	}))
	t.Cleanup(server.Close)

	cfg := notification.DefaultConfig()
	cfg.Webhook.URL, cfg.Webhook.Secret, cfg.Webhook.AllowNetworks = scrub.URL(server.URL), secret, []string{"127.0.0.0/8"}

	return cfg, &attempts
}

func TestAWebhookIsSigned(t *testing.T) {
	t.Parallel()

	cfg, attempts := receiver(t, func(w http.ResponseWriter) { _, _ = io.WriteString(w, "thanks") })
	e := posted(t)

	got, err := newService(t, cfg).PostWebhook(t.Context(), e)
	if err != nil || got != "200 OK thanks" {
		t.Fatalf("got %q, %v", got, err)
	}

	if id := (*attempts)[0].Get("Webhook-Id"); id != "msg_"+e.ID.String() {
		t.Errorf("the id is %s", id)
	}
}

// What becomes of a notification whose post was answered with an error.
const (
	later = "posted again later"
	slow  = "posted again later, and others wait too"
	final = "stopped"
)

// consequence returns what an error means for the notification, and the requested delay.
func consequence(err error) (what string, wait time.Duration) {
	var (
		retried  *event.LaterError
		rejected *event.RejectError
	)

	switch {
	case errors.As(err, &rejected):
		return final, 0
	case errors.As(err, &retried) && retried.Dependency == notification.WebhookReceiver:
		return slow, retried.After
	case errors.As(err, &retried):
		return later, retried.After
	default:
		return "", 0
	}
}

// answering returns a handler that answers with a status, and a Retry-After unless after
// is empty.
func answering(code int, after string) func(http.ResponseWriter) {
	return func(w http.ResponseWriter) {
		w.Header().Set("Location", "/elsewhere")

		if after != "" {
			w.Header().Set("Retry-After", after)
		}

		w.WriteHeader(code)
		_, _ = io.WriteString(w, "because")
	}
}

func TestAnswersOfTheWebhookReceiver(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		code  int
		after string
		want  string
		wait  time.Duration
	}{
		{http.StatusMovedPermanently, "", later, 0}, // a redirect is not followed
		{http.StatusFound, "", later, 0},
		{http.StatusBadRequest, "", later, 0},
		{http.StatusUnauthorized, "", later, 0},
		{http.StatusForbidden, "", later, 0},
		{http.StatusNotFound, "", later, 0},
		{http.StatusConflict, "", later, 0},
		{http.StatusTooEarly, "", later, 0},
		{http.StatusInternalServerError, "", later, 0},
		{http.StatusRequestTimeout, "3", later, 3 * time.Second},
		{http.StatusTooManyRequests, "7", slow, 7 * time.Second},
		{http.StatusTooManyRequests, "1000000", slow, time.Hour},
		{http.StatusBadGateway, "", slow, 0},
		{http.StatusServiceUnavailable, "", slow, 0},
		{http.StatusGatewayTimeout, "", slow, 0},
		{http.StatusGone, "", final, 0},
		{http.StatusUnprocessableEntity, "", final, 0}, // as configured
	} {
		t.Run(http.StatusText(c.code)+" "+c.after, func(t *testing.T) {
			t.Parallel()

			cfg, attempts := receiver(t, answering(c.code, c.after))
			cfg.Webhook.FinalStatuses = []int{http.StatusUnprocessableEntity}

			_, err := newService(t, cfg).PostWebhook(t.Context(), posted(t))

			got, wait := consequence(err)
			if got != c.want || wait != c.wait {
				t.Errorf("got %q (%+v), expected %q after %s", got, err, c.want, c.wait)
			}

			if err == nil || !strings.Contains(err.Error(), strconv.Itoa(c.code)) || !strings.Contains(err.Error(), "because") {
				t.Errorf("the error is %v", err)
			}

			if gone := errors.Is(err, notification.ErrGone); gone != (c.code == http.StatusGone) || len(*attempts) != 1 {
				t.Errorf("gone %t after %d requests", gone, len(*attempts))
			}
		})
	}
}

func TestAllAttemptsOfAWebhookHaveTheSameBody(t *testing.T) {
	t.Parallel()

	cfg, attempts := receiver(t, func(w http.ResponseWriter) { w.WriteHeader(http.StatusNotFound) })
	s, e := newService(t, cfg), posted(t)

	pgtest.Eventually(t, "attempts at different times", func() bool {
		if _, err := s.PostWebhook(t.Context(), e); err == nil {
			t.Error("404 counts as success")
		}

		return (*attempts)[0].Get("Webhook-Timestamp") != (*attempts)[len(*attempts)-1].Get("Webhook-Timestamp")
	})

	for _, a := range *attempts {
		if a.body != (*attempts)[0].body || a.Get("Webhook-Id") != "msg_"+e.ID.String() {
			t.Errorf("%s posts %s, the first %s", a.Get("Webhook-Id"), a.body, (*attempts)[0].body)
		}
	}
}

func TestAnUnreachableReceiverMakesOthersWait(t *testing.T) {
	t.Parallel()

	cfg, _ := receiver(t, nil)
	cfg.Webhook.URL = "http://127.0.0.1:1/hooks/token"

	var later *event.LaterError

	_, err := newService(t, cfg).PostWebhook(t.Context(), posted(t))
	if !errors.As(err, &later) || later.Dependency != notification.WebhookReceiver || strings.Contains(err.Error(), "token") {
		t.Errorf("got %v", err)
	}
}

func TestTheContentOfAWebhookIsBounded(t *testing.T) {
	t.Parallel()

	for _, c := range []struct {
		content string
		channel notification.Channel
		want    string
	}{
		{strings.Repeat("x", 19_000), notification.Webhook, ""},
		{strings.Repeat("x", 20_000), notification.Webhook, "content: has 20002 bytes as JSON, expected at most 19456 for a webhook"},
		{strings.Repeat("<", 10_000), notification.Webhook, "content: has 60002 bytes as JSON, expected at most 19456 for a webhook"},
		{strings.Repeat("x", 20_000), notification.Email, ""},
		{strings.Repeat("x", 20_000), notification.Log, ""},
		{strings.Repeat("x", 102_401), notification.Log, "content: has 102401 characters, expected at most 102400"},
	} {
		got := ""
		if err := (notification.Requested{UserID: "alice", Content: c.content, Channel: c.channel}).Validate(); err != nil {
			got = err.Error()
		}

		if got != c.want {
			t.Errorf("%s with %d bytes: got %q, expected %q", c.channel, len(c.content), got, c.want)
		}
	}
}

func TestWebhooksDoNotReachPrivateAddresses(t *testing.T) {
	t.Parallel()

	reached := false
	cfg, _ := receiver(t, func(http.ResponseWriter) { reached = true })
	cfg.Webhook.AllowNetworks = []string{}
	port := cfg.Webhook.URL[strings.LastIndex(string(cfg.Webhook.URL), ":"):]

	for _, host := range []string{
		"127.0.0.1", "localhost", "[::1]", "10.0.0.1", "169.254.169.254", "100.64.0.1", "[::ffff:127.0.0.1]",
		"0.0.0.0", "198.18.0.1", "255.255.255.255", "[fe80::1]", "[fd00::1]", "[64:ff9b::a00:1]", "[2002:a00:1::1]", "[::]",
	} {
		cfg.Webhook.URL = scrub.URL("http://"+host) + port + "/hooks/token"

		_, err := newService(t, cfg).PostWebhook(t.Context(), posted(t))
		if err == nil || !strings.Contains(err.Error(), "allow_networks") || strings.Contains(err.Error(), "token") {
			t.Errorf("%s: got %v", host, err)
		}
	}

	if reached {
		t.Error("the receiver was reached")
	}
}

func TestALongAnswerIsCutOff(t *testing.T) {
	t.Parallel()

	var later *event.LaterError

	cfg, _ := receiver(t, func(w http.ResponseWriter) {
		for n := range 1000 {
			w.Header().Set("X-"+strconv.Itoa(n), strings.Repeat("x", 100))
		}
	})
	if _, err := newService(t, cfg).PostWebhook(t.Context(), posted(t)); !errors.As(err, &later) || !strings.Contains(err.Error(), "header") {
		t.Errorf("headers: got %v", err)
	}

	cfg, _ = receiver(t, func(w http.ResponseWriter) { _, _ = io.WriteString(w, strings.Repeat("x", 1<<20)) })
	if got, err := newService(t, cfg).PostWebhook(t.Context(), posted(t)); err != nil || len(got) > 2000 {
		t.Errorf("body: got %d bytes, %v", len(got), err)
	}

	cfg, _ = receiver(t, func(w http.ResponseWriter) { _, _ = io.WriteString(w, strings.Repeat("注", 1000)) })
	if got, err := newService(t, cfg).PostWebhook(t.Context(), posted(t)); err != nil || got != "200 OK "+strings.Repeat("注", 341) {
		t.Errorf("characters: got %q, %v", got, err)
	}
}

func TestConfigurationMistakesNameTheKey(t *testing.T) {
	t.Parallel()

	cfg := notification.DefaultConfig()
	cfg.Email = notification.EmailConfig{Port: 0, TLS: "maybe", User: "u", From: "nobody"}
	cfg.Webhook = notification.WebhookConfig{URL: "ftp://x", Secret: "short", AllowNetworks: []string{"all"}, FinalStatuses: []int{200}}

	err := cfg.Validate()
	for _, key := range []string{"email.port", "email.tls", "email.user", "email.from", "webhook.url", "webhook.secret", "webhook.allow_networks", "webhook.final_statuses"} {
		if err == nil || !strings.Contains(err.Error(), "notification."+key+": ") {
			t.Errorf("%s is not reported: %v", key, err)
		}
	}
}

// A receiver may be down over a weekend.
func TestWebhooksAreTriedForDays(t *testing.T) {
	t.Parallel()

	var total time.Duration

	for pause, n := notification.WebhookPause, 1; n < notification.WebhookAttempts; n++ {
		total += pause
		pause = min(2*pause, notification.WebhookMaxPause)
	}

	if total < 72*time.Hour || total > 120*time.Hour {
		t.Errorf("the last attempt is %s after the first, expected three to five days", total)
	}
}
