package operate

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/health"
)

func TestATopicIsNotSubscribedIfItsBrokerKnowsNoneForAWhile(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		m := &monitor{}
		first := time.Now().UTC()

		look := func(subscriptions int, unknown string) *time.Time {
			m.note([]Backlog{{Topic: "orders.created", Subscriptions: subscriptions, Unknown: unknown}})

			return m.unsubscribed("orders.created")
		}

		for _, c := range []struct {
			what          string
			subscriptions int
			unknown       string
			lost          bool
		}{
			{"a group that is being rebalanced", 0, "", false},
			{"15 s later", 0, "", false},
			{"30 s later", 0, "", true},
			{"an unknown number", 0, "the broker is unavailable", false},
			{"none again", 0, "", false},
			{"a subscription", 4, "", false},
		} {
			since := look(c.subscriptions, c.unknown)
			if (since != nil) != c.lost || since != nil && !since.Equal(first) {
				t.Errorf("%s: not subscribed since %v", c.what, since)
			}

			time.Sleep(measureEvery)
		}
	})
}

func TestFactsThatNeedAttentionAreNamedWithARemedy(t *testing.T) {
	t.Parallel()

	long, now := time.Now().Add(-time.Hour), time.Now()

	for name, c := range map[string]struct {
		facts          Facts
		reason, remedy string
	}{
		"stopped messages":  {Facts{Counts: &Counts{Stopped: 1000}}, "1000 messages are stopped", "millrace failed groups"},
		"waiting messages":  {Facts{Counts: &Counts{WaitingMessages: 7, WaitingKeys: 1}}, "", ""},
		"a slow outbox":     {Facts{Counts: &Counts{OutboxDue: 5, OldestDue: &long}}, "5 messages wait", "add replicas"},
		"a busy outbox":     {Facts{Counts: &Counts{OutboxDue: 5, OldestDue: &now}}, "", ""},
		"a clock ahead":     {Facts{Counts: &Counts{ClockAhead: 42}}, "the clock here is 42s ahead", "NTP"},
		"a clock behind":    {Facts{Counts: &Counts{ClockAhead: -42}}, "the clock here is -42s ahead", "NTP"},
		"an ordinary clock": {Facts{Counts: &Counts{ClockAhead: 0.2}}, "", ""},
	} {
		list := c.facts.Troubles()

		switch {
		case c.reason == "" && len(list) > 0:
			t.Errorf("%s: got %+v", name, list)
		case c.reason != "" && (len(list) != 1 || list[0].Level != health.Degraded || !strings.Contains(list[0].Reason, c.reason) || !strings.Contains(list[0].Remedy, c.remedy)):
			t.Errorf("%s: got %+v", name, list)
		}
	}
}

func TestWhatCannotBeReadIsNamedSinceTheFirstTimeAndHasNoSample(t *testing.T) {
	t.Parallel()

	synctest.Test(t, func(t *testing.T) {
		o := &Operator{Logger: slog.New(slog.DiscardHandler)}
		denied := errors.New("permission denied for sequence s (SQLSTATE 42501)")
		first := time.Now()

		for _, c := range []struct {
			what          string
			err           error
			kind, name    string
			since         time.Time
			remedy        string
			countsMissing bool
		}{
			{"nothing is denied", nil, "", "", first, "", false},
			{"the projections are denied", denied, health.Postgres, "projections", first.Add(measureEvery), "grant the role", false},
			{"they still are", denied, health.Postgres, "projections", first.Add(measureEvery), "grant the role", false},
			{"nothing is denied again", nil, "", "", first, "", false},
			{"Postgres is not responding", context.DeadlineExceeded, health.Dependency, "postgres", first.Add(4 * measureEvery), "check that Postgres is running", true},
		} {
			facts := Facts{Counts: &Counts{}}
			if c.err != nil {
				facts.Gaps = []Gap{{Part: partProjections, Why: c.err.Error(), err: c.err}}
			}

			if c.countsMissing {
				facts.Counts = nil
				facts.Gaps = append(facts.Gaps, Gap{Part: partCounts, Why: c.err.Error(), err: c.err})
			}

			o.learn(facts)

			now, _ := o.monitor.measured()
			list := now.Troubles()

			switch {
			case (now.Counts == nil) != c.countsMissing:
				t.Errorf("%s: old counts stay", c.what)
			case c.err == nil && len(list) > 0:
				t.Errorf("%s: got %+v", c.what, list)
			case c.err != nil && (len(list) != 1 || list[0].Kind != c.kind || list[0].Name != c.name || list[0].Level != health.Degraded ||
				!list[0].Since.Equal(c.since) || !strings.Contains(list[0].Remedy, c.remedy)):
				t.Errorf("%s: got %+v, expected it since %s", c.what, list, c.since)
			}

			time.Sleep(measureEvery)
		}
	})
}

func TestAClockIsComparedWithinTheTimeThatAskingTook(t *testing.T) {
	t.Parallel()

	sent := time.Now()
	received := sent.Add(time.Second)

	for remote, want := range map[time.Duration]time.Duration{
		500 * time.Millisecond: 0, time.Minute: -59 * time.Second, -time.Minute: time.Minute,
	} {
		if got := ahead(sent, received, sent.Add(remote)); got != want {
			t.Errorf("the database says %s later: got %s ahead, expected %s", remote, got, want)
		}
	}
}

func TestABrokerThatRefusesTheAccountSaysWhatToDo(t *testing.T) {
	t.Parallel()

	p := Process{Phase: PhaseRunning, Connected: []broker.State{{Broker: broker.Kafka, Why: "SASL Authentication failed", Remedy: "correct broker.kafka.password"}}}

	if list := p.troubles(); len(list) != 1 || list[0].Level != health.Unready || list[0].Remedy != "correct broker.kafka.password" {
		t.Errorf("got %+v", list)
	}
}

func TestTheRemedyFollowsFromTheError(t *testing.T) {
	t.Parallel()

	for _, c := range []struct{ dependency, why, remedy string }{
		{"postgres", "ERROR: could not extend file: No space left on device (SQLSTATE 53100)", "free disk space"},
		{"postgres", "ERROR: cannot execute INSERT in a read-only transaction (SQLSTATE 25006)", "correct postgres.url"},
		{"postgres", "ERROR: permission denied for table orders (SQLSTATE 42501)", "grant the role"},
		{"postgres", "FATAL: sorry, too many clients already (SQLSTATE 53300)", "max_connections"},
		{"postgres", "dial tcp 127.0.0.1:1: connect: connection refused", "check that Postgres is running"},
		{"kafka", "kafka: client has run out of available brokers: connection refused", "broker.kafka"},
		{"kafka", "kafka server: SASL Authentication failed", "correct the user, password"},
		{"kafka", "kafka server: Message was too large, server rejected it to avoid allocation error", "raise the limit of the topic"},
		{"rabbitmq", "Exception (403) Reason: \"username or password not allowed\"", "correct the user, password"},
		{"payment gateway", "charging: stripe answered: 401 Invalid API Key provided (invalid_request_error, request req_1)", "correct the user, password"},
		{"notification webhook", "posting webhook: the receiver answered 403 Forbidden", "correct the user, password"},
		{"rabbitmq", "Exception (403) Reason: \"no access to this vhost\"", "correct the user, password"},
		{"payment gateway", "dial tcp 10.0.0.1:401: connect: connection refused", "check that it is running"},
		{"payment gateway", "charging order 403: it answered 500", "check that it is running"},
		{"mail server", "tls: failed to verify certificate: x509: unknown authority", "CA file"},
		{"mail server", "dial tcp: lookup mail.example: no such host", "correct the host"},
	} {
		if got := remedyFor(c.dependency, c.why); !strings.Contains(got, c.remedy) {
			t.Errorf("%s, %s: got %q, expected %q", c.dependency, c.why, got, c.remedy)
		}
	}
}

func TestTheRemedyOfATaskFollowsFromTheError(t *testing.T) {
	t.Parallel()

	for why, remedy := range map[string]string{
		"ERROR: permission denied for table users (SQLSTATE 42501)":             "grant the role",
		"failed to connect to `host=db`: dial tcp: connect: connection refused": "check that Postgres is running",
		"ERROR: invalid input syntax for type json (SQLSTATE 22P02)":            "fix what the error reports",
		"applying event 17: there is no upcaster from version 3":                "fix what the error reports",
		health.Silent + ", expected one every 30s":                              "restart the service",
	} {
		p := Process{Phase: PhaseRunning, Tasks: []health.State{{Name: "projections", Level: health.Degraded, Why: why}}}

		if list := p.troubles(); len(list) != 1 || !strings.Contains(list[0].Remedy, remedy) {
			t.Errorf("%s: got %+v, expected %q", why, list, remedy)
		}
	}
}

func TestNothingContinuesByItselfWithoutAService(t *testing.T) {
	t.Parallel()

	away := "dial tcp 127.0.0.1:1: connect: connection refused"

	for _, service := range []*Process{nil, {}} {
		s := Status{Service: service, Away: away, Backlogs: []Backlog{{Topic: "t", Broker: "kafka", Unknown: away}}}.completed(nil, 0)

		for _, trouble := range s.Troubles {
			if is := strings.Contains(trouble.Remedy, "the service"); is != (service != nil) {
				t.Errorf("with a service %t: %s", service != nil, trouble.Remedy)
			}
		}
	}
}
