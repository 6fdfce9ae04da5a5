package rabbitmq

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp091 "github.com/rabbitmq/amqp091-go"
	"golang.org/x/sync/singleflight"

	"github.com/millracehq/millrace/internal/engine/backoff"
	"github.com/millracehq/millrace/internal/engine/broker/driver"
)

const (
	// dialTimeout bounds connecting to one host. RabbitMQ takes 3 s to reject a password.
	dialTimeout = 6 * time.Second
	// loginTimeout is a little shorter, so that we recognize a login that gets no answer.
	loginTimeout = dialTimeout - 200*time.Millisecond
	// closeTimeout bounds closing a connection or channel: a broker that blocks its
	// publishers does not read their requests to close.
	closeTimeout = 2 * time.Second
)

// connection is a connection that is opened when needed and shared by all its users.
// Consumers and the publisher have one each: RabbitMQ stops reading from a connection
// that it blocks, and then does not see acknowledgements either.
type connection struct {
	cfg    Config
	role   string
	logger *slog.Logger

	// ctx ends after close.
	ctx    context.Context //nolint:containedctx // it is the lifetime of the connection
	cancel context.CancelFunc

	dialing  singleflight.Group
	reminder backoff.Reminder

	mu     sync.Mutex
	live   *live
	closed bool
	// established is true once the connection has been open. Until then, Connect logs
	// the errors.
	established bool
}

func newConnection(cfg Config, role string, logger *slog.Logger) *connection {
	ctx, cancel := context.WithCancel(context.Background())

	return &connection{cfg: cfg, role: role, logger: logger.With(slog.String("connection", role)), ctx: ctx, cancel: cancel}
}

// open returns the connection, opening it if necessary. Concurrent callers share one
// attempt, which continues even if ctx ends. After close, the error is driver.ErrClosed.
func (c *connection) open(ctx context.Context) (*live, error) {
	if l, err := c.current(); l != nil || err != nil {
		return l, err
	}

	select {
	case result := <-c.dialing.DoChan("", c.dial):
		if result.Err != nil {
			return nil, result.Err
		}

		return result.Val.(*live), nil //nolint:forcetypeassert // dial returns it
	case <-ctx.Done():
		return nil, fmt.Errorf("connecting to rabbitmq: %w", ctx.Err())
	}
}

// dial opens the connection, and returns it as a *live.
func (c *connection) dial() (any, error) {
	if l, err := c.current(); l != nil || err != nil {
		return l, err
	}

	ctx, cancel := context.WithCancel(c.ctx)

	l, err := dial(ctx, c.cfg, c.role)

	switch {
	case c.ctx.Err() != nil && err != nil:
		cancel()

		return nil, driver.ErrClosed
	case err != nil:
		cancel()

		if c.wasOpen() && c.reminder.Due(err) {
			c.logger.Warn("cannot reach rabbitmq", slog.Any("error", err))
		}

		return nil, err
	}

	return l, c.opened(l, cancel)
}

// current returns the connection if it is open.
func (c *connection) current() (*live, error) {
	c.mu.Lock()
	defer c.mu.Unlock()

	if c.closed {
		return nil, driver.ErrClosed
	}

	if c.live == nil || c.live.IsClosed() {
		return nil, nil //nolint:nilnil // none is open
	}

	return c.live, nil
}

func (c *connection) wasOpen() bool {
	c.mu.Lock()
	defer c.mu.Unlock()

	return c.established
}

// opened makes l the current connection and watches it. It calls ended when l is closed.
func (c *connection) opened(l *live, ended func()) error {
	c.mu.Lock()
	defer c.mu.Unlock()

	if c.closed {
		defer ended()

		l.close()

		return driver.ErrClosed
	}

	if c.established {
		c.reminder.Reset()
		c.logger.Info("reconnected to rabbitmq")
	}

	c.live, c.established = l, true

	lost, blockings := l.NotifyClose(make(chan *amqp091.Error, 1)), l.NotifyBlocked(make(chan amqp091.Blocking, 1))

	go func() {
		for b := range blockings {
			l.block(b)

			if b.Active {
				c.logger.Warn("rabbitmq is not accepting messages: it has raised an alarm", slog.String("reason", b.Reason))
			} else {
				c.logger.Info("rabbitmq is accepting messages again")
			}
		}
	}()

	go func() {
		defer ended()

		if err, failed := <-lost; failed {
			c.logger.Warn("lost the connection to rabbitmq; reconnecting", slog.Any("error", err))
		}
	}()

	return nil
}

// wait opens the connection, trying until ctx ends.
func (c *connection) wait(ctx context.Context) (l *live, err error) {
	err = backoff.Until(ctx, func() error {
		l, err = c.open(ctx)
		if errors.Is(err, driver.ErrClosed) {
			return backoff.Final(err)
		}

		return err
	})

	return l, err
}

// close closes the connection for good.
func (c *connection) close() {
	c.mu.Lock()
	l := c.live
	c.closed = true
	c.mu.Unlock()

	if l != nil {
		l.close()
	}

	c.cancel()
}

// live is an open connection.
type live struct {
	*amqp091.Connection

	socket net.Conn

	mu sync.Mutex
	// limit is the size in bytes above which the broker has recently refused messages.
	limit limit
	// reason is why the broker accepts no messages, or "". blocked is closed while
	// there is a reason.
	reason  string
	blocked chan struct{}
}

// dial opens a connection to the first host that answers. The connection closes when
// ctx ends.
func dial(ctx context.Context, cfg Config, role string) (*live, error) {
	uri, err := amqp091.ParseURI(string(cfg.URL))
	if err != nil {
		return nil, errors.New("broker.rabbitmq.url: not an AMQP address")
	}

	var errs []error

	for _, address := range append([]string{net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))}, cfg.Hosts...) {
		l, err := dialHost(ctx, cfg, role, address)

		if err == nil {
			return l, nil
		}

		errs = append(errs, fmt.Errorf("reaching rabbitmq at %s: %w", address, cmp.Or(ctx.Err(), login(uri, err))))
	}

	return nil, errors.Join(errs...)
}

// login returns err, or a refusal if err means that the broker rejects the account.
func login(uri amqp091.URI, err error) error {
	var reason, remedy string

	answer, answered := errors.AsType[*amqp091.Error](err)
	external := slices.ContainsFunc(uri.AuthMechanism, func(m string) bool { return strings.EqualFold(m, "external") })

	switch {
	case errors.Is(err, amqp091.ErrSASL):
		reason, remedy = "the broker does not offer the mechanism", "correct auth_mechanism in broker.rabbitmq.url, or enable rabbitmq_auth_mechanism_ssl for EXTERNAL"
	case errors.Is(err, amqp091.ErrCredentials) && external:
		reason, remedy = "no user has the name in the certificate", "create the user, or correct broker.rabbitmq.cert_file"
	case errors.Is(err, amqp091.ErrCredentials):
		reason, remedy = fmt.Sprintf("wrong user %q or wrong password", uri.Username), "correct the user and password in broker.rabbitmq.url"
	case answered && answer.Code == amqp091.NotAllowed:
		reason, remedy = answer.Reason, fmt.Sprintf("create vhost %q, give the user permissions on it, raise its limits, or correct the path in broker.rabbitmq.url", uri.Vhost)
	case strings.Contains(err.Error(), "remote error: tls: "): // the library keeps only the text
		reason, remedy = err.Error(), "set broker.rabbitmq.cert_file and broker.rabbitmq.key_file to a valid certificate from an authority that the broker trusts"
	default:
		return err
	}

	return &driver.RefusedError{Scope: driver.Account, Remedy: remedy, Err: errors.New("authentication failed: " + reason)}
}

// dialHost opens a connection to address, whatever host the URL names.
func dialHost(ctx context.Context, cfg Config, role, address string) (*live, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}

	security, err := cfg.tls(host)
	if err != nil {
		return nil, err
	}

	properties := amqp091.NewConnectionProperties()
	properties.SetClientConnectionName("millrace " + role)

	l := &live{blocked: make(chan struct{})}

	var connected time.Time

	l.Connection, err = amqp091.DialConfig(string(cfg.URL), amqp091.Config{
		TLSClientConfig: security, // ignored by amqp://
		Properties:      properties,
		Dial: func(network, _ string) (socket net.Conn, err error) {
			socket, err = driver.NewDialer(ctx, dialTimeout)(network, address)
			connected = time.Now()

			if err != nil {
				return nil, err
			}

			l.socket = gather(socket)

			return l.socket, nil
		},
	})

	// The library returns ErrCredentials whatever ends the login.
	if errors.Is(err, amqp091.ErrCredentials) && (ctx.Err() != nil || time.Since(connected) > loginTimeout) {
		return nil, fmt.Errorf("rabbitmq did not respond to the login within %s", dialTimeout)
	}

	if err != nil {
		return nil, err
	}

	return l, nil
}

func (l *live) block(b amqp091.Blocking) {
	l.mu.Lock()
	defer l.mu.Unlock()

	switch {
	case b.Active && l.reason == "":
		l.reason = b.Reason
		close(l.blocked)
	case !b.Active && l.reason != "":
		l.reason = ""
		l.blocked = make(chan struct{})
	}
}

// blockade returns a channel that is closed once the broker accepts no messages.
func (l *live) blockade() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()

	return l.blocked
}

// alarm returns why the broker accepts no messages, or nil.
func (l *live) alarm() error {
	l.mu.Lock()
	defer l.mu.Unlock()

	if l.reason == "" {
		return nil
	}

	return fmt.Errorf("%w: rabbitmq has raised an alarm: %s", driver.ErrBlocked, l.reason)
}

// close closes the connection within closeTimeout.
func (l *live) close() {
	timer := time.AfterFunc(closeTimeout, func() { _ = l.socket.Close() })
	defer timer.Stop()

	_ = l.Close() // no longer used
}

// closeChannel closes a channel. It waits for the broker, but not indefinitely.
func closeChannel(channel *amqp091.Channel) {
	done := make(chan struct{})

	go func() {
		defer close(done)

		_ = channel.Close() // no longer used
	}()

	select {
	case <-done:
	case <-time.After(closeTimeout):
	}
}
