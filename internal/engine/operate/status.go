package operate

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/millracehq/millrace/internal/engine/check"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/scrub"
)

// Status is the state of a service, its database and its brokers.
type Status struct {
	// Service is nil if the service does not respond; Unreachable is the reason.
	Service     *Process `json:"service,omitempty"`
	Unreachable string   `json:"unreachable,omitempty"`
	// Database is nil if Postgres does not respond; Away is the reason.
	Database *Facts `json:"database,omitempty"`
	Away     string `json:"database_unreachable,omitempty"`
	// Consumers are the service's consumers. If no service responds, their states are
	// unknown.
	Consumers []Consumer `json:"consumers"`
	// Backlogs is what the brokers hold.
	Backlogs []Backlog `json:"backlogs"`
	// Troubles lists everything that is wrong, most important first.
	Troubles []health.Trouble `json:"troubles"`
}

// Status queries the service at addr, Postgres and the brokers. A failure of any of
// them is part of the status.
func (o *Operator) Status(ctx context.Context, addr string) (s Status) {
	ctx, cancel := context.WithTimeout(ctx, measureTimeout)
	defer cancel()

	var asking sync.WaitGroup

	asking.Go(func() { s.Backlogs = o.Backlogs(ctx) })

	process := &Process{}
	if err := askState(ctx, addr, process); err != nil {
		s.Unreachable = scrub.Text(err.Error())
	} else {
		s.Service = process
		s.Troubles = process.Troubles
	}

	facts := o.Facts(ctx, 0)
	if s.Away = facts.away(); s.Away == "" {
		s.Database = &facts
	}

	asking.Wait()

	return s.completed(o.unknown(), o.Retention)
}

// Here is the Status of the service that this process is. It asks Postgres, but no broker:
// backlogs are those of the last measurement. An anonymous status does not say who paused
// a consumer and why.
func (o *Operator) Here(ctx context.Context, anonymous bool) Status {
	process := o.Process()
	_, backlogs := o.monitor.measured()
	s := Status{Service: &process, Backlogs: backlogs, Troubles: process.Troubles}

	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()

	facts := o.Facts(ctx, maxMeasured)
	for i, pause := range facts.Paused {
		if anonymous {
			facts.Paused[i] = pause.Anonymous()
		}
	}

	if s.Away = facts.away(); s.Away == "" {
		s.Database = &facts
	}

	return s.completed(nil, o.Retention)
}

// Counts returns what was counted in Postgres, or nil if that is unknown.
func (s Status) Counts() *Counts {
	if s.Database == nil {
		return nil
	}

	return s.Database.Counts
}

// Backlog says how many messages on a topic are waiting in the outbox and at the broker.
func (s Status) Backlog(topic string) string {
	counts := s.Counts()
	if counts == nil {
		return string(Unknown)
	}

	n := counts.DueByTopic[topic]

	for _, b := range s.Backlogs {
		if b.Topic == topic && b.Unknown != "" {
			return fmt.Sprintf("%d, unknown on %s", n, b.Broker)
		}

		if b.Topic == topic {
			n += b.Messages
		}
	}

	return strconv.FormatInt(n, 10)
}

// completed lists the consumers and the troubles.
func (s Status) completed(unknown []Consumer, remembered time.Duration) Status {
	s.Consumers = unknown
	if s.Service != nil {
		s.Consumers = s.Service.Consumers
	}

	if s.Database != nil && s.Database.gap(partPauses) == nil {
		s.Consumers = pausedBy(s.Consumers, s.Database.Paused)
		// The service does not say who paused a consumer and why; the database does.
		s.Troubles = slices.DeleteFunc(s.Troubles, func(t health.Trouble) bool { return t.Reason == pausedByOperator })
	}

	var more []health.Trouble

	if s.Service == nil {
		more = append(more, health.Trouble{
			Kind: health.Service, Name: "service", Level: health.Unready, Reason: s.Unreachable, Remedy: s.serviceRemedy(),
		})
	}

	if s.Database != nil {
		more = append(more, s.Database.Troubles()...)
	} else {
		more = append(more, health.Trouble{
			Kind: health.Dependency, Name: postgres.Dependency, Level: health.Unready, Reason: s.Away, Remedy: remedyFor(postgres.Dependency, s.Away),
		})
	}

	for _, b := range s.Backlogs {
		if b.Unknown != "" && !s.unsubscribed(b.Topic) {
			more = append(more, degraded(health.Broker, b.Broker, nil, b.Unknown, remedyFor(b.Broker, b.Unknown)))
		}
	}

	s.Troubles = merge(s.Troubles, append(more, forgetful(s.Backlogs, remembered)...))

	if s.Service == nil { // nothing continues on its own
		for i := range s.Troubles {
			s.Troubles[i].Remedy = strings.TrimSuffix(s.Troubles[i].Remedy, byItself)
		}
	}

	return s
}

// unsubscribed reports whether a topic cannot be subscribed to, which its consumers'
// troubles already report.
func (s Status) unsubscribed(topic string) bool {
	return slices.ContainsFunc(s.Consumers, func(c Consumer) bool { return c.Topic == topic && c.State == NotSubscribed })
}

func (s Status) serviceRemedy() string {
	if counts := s.Counts(); counts != nil && counts.Replicas > 0 {
		return event.Plural(counts.Replicas, "process publishes", "processes publish") +
			" from this database, but none is responding here: run the command on the host of one, or correct health.addr"
	}

	return "start it with `millrace serve`, or correct health.addr"
}

// errTroubled reports that something needs attention.
var errTroubled = errors.New("something needs attention; see above")

// Err returns an error unless everything works.
func (s Status) Err() error {
	if worst := health.Worst(s.Troubles); worst == health.Unready || worst == health.Degraded {
		return errTroubled
	}

	return nil
}

// askTimeout bounds a request to a running service, not counting the time that the
// service waits.
const askTimeout = 3 * time.Second

// Client reaches a running service.
type Client struct {
	// URL is the scheme and the address.
	URL string
	// Token is presented, unless it is empty.
	Token string
	// TLS verifies the service. It may be nil.
	TLS *tls.Config
}

// askState asks the service whose probes are at addr for its state.
func askState(ctx context.Context, addr string, state *Process) error {
	return Client{URL: "http://" + check.Dialable(addr)}.ask(ctx, "health.addr", "/statusz", 0, state)
}

// ask sends a GET request to the service; key is the setting that holds its address, for
// errors. The service may wait before it responds.
func (c Client) ask(ctx context.Context, key, path string, wait time.Duration, response any) error {
	ctx, cancel := context.WithTimeout(ctx, wait+askTimeout)
	defer cancel()

	request, err := http.NewRequestWithContext(ctx, http.MethodGet, c.URL+path, nil)
	if err != nil {
		return err
	}

	if c.Token != "" {
		request.Header.Set("Authorization", "Bearer "+c.Token)
	}

	transport := &http.Transport{TLSClientConfig: c.TLS, DisableKeepAlives: true}

	got, err := (&http.Client{Transport: transport}).Do(request)
	if err != nil {
		return fmt.Errorf("no service is responding at %s %s: %w", key, c.URL, err)
	}
	defer got.Body.Close() //nolint:errcheck // only read from

	switch err := json.NewDecoder(got.Body).Decode(response); {
	case got.StatusCode == http.StatusUnauthorized || got.StatusCode == http.StatusForbidden:
		return event.Errorf(event.Invalid, "the service at %s %s rejected http.token: %s; create a token with `millrace tokens create NAME --role operator`", key, c.URL, got.Status)
	case err != nil || got.StatusCode != http.StatusOK:
		return fmt.Errorf("unexpected response from the program at %s %s: %s", key, c.URL, got.Status)
	default:
		return nil
	}
}
