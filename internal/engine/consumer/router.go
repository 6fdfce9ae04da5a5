// Package consumer applies messages to Postgres with exactly-once effect. It sets up
// Watermill's router with its middleware and adds batching: messages that arrive
// together share a transaction.
//
// The package knows no topics and no domains. Handlers are registered with [On],
// [OnBatch] and [OnEffect].
package consumer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/millracehq/millrace/internal/engine/breaker"
	"github.com/millracehq/millrace/internal/engine/crashpoint"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/failed"
	"github.com/millracehq/millrace/internal/engine/health"
	"github.com/millracehq/millrace/internal/engine/line"
	"github.com/millracehq/millrace/internal/engine/outbox"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/engine/span"
	"github.com/millracehq/millrace/internal/telemetry"
)

// Router dispatches messages to the registered handlers.
type Router struct {
	cfg          Config
	perTopic     map[string]Config
	pool         *pgxpool.Pool
	failed       *failed.Store
	dependencies *breaker.Set
	postgres     *breaker.Breaker
	relay        *outbox.Relay
	tracer       *span.Tracer
	logger       *slog.Logger
	metrics      *metrics
	routes       []*Route
	erasers      []eraser
	marks        []MarksFunc
	running      atomic.Bool
	subscribers  []message.Subscriber
	suspensions  *suspensions
	topics       subscriptions
	stalls       stalls
	awaited      awaited
	memory       memory
	gate         gate
	turns        turns
	decoders     decoders
	// due wakes retryWaiting.
	due chan struct{}

	// Retries tracks whether waiting messages are being retried.
	Retries *health.Loop

	// outbox batches searches of the outbox for awaited messages. A unit holds the topics
	// to search.
	outbox batches[[]string]

	// stopping is cancelled when shutdown begins: waiting messages are returned.
	// working is cancelled when the drain times out.
	stopping, working context.Context //nolint:containedctx // they are lifetimes, not requests
	stop, abort       context.CancelFunc
}

// Route is one entry of the routing table.
type Route struct {
	// Consumer names the handler. The inbox identifies the handler by this name, so
	// it must never change.
	Consumer string
	Topic    string
	// Payload is a zero value of the topic's type. Publishes has one value of each
	// type that the handler may return.
	Payload   event.Payload
	Publishes []event.Payload
	// Check returns the error with which a payload would be rejected before reaching
	// the handler, and its ordering key if it can be read.
	Check func(payload []byte) (key string, err error)

	// topics lists the topics of Publishes.
	topics []string
	// lines is nil if messages with the same key must be handled one at a time.
	lines *lines
	// open decodes the payload of a delivery and sets the fields that depend on it.
	open func(d *delivery) error
}

// key returns the ordering key of a payload, or "" if it cannot be read.
func (r *Route) key(payload []byte) string {
	key, _ := protect(func() (string, error) { return r.Check(payload) })

	return key
}

// NewRouter returns a router without routes. It wakes relay after commits, and learns
// from it which topics are not being published. Messages have no spans if tracer is nil.
func NewRouter(
	cfg Config, pool *pgxpool.Pool, failures *failed.Store, dependencies *breaker.Set,
	relay *outbox.Relay, tracer *span.Tracer, logger *slog.Logger, registry *prometheus.Registry,
) (*Router, error) {
	perTopic, err := cfg.perTopic()
	if err != nil {
		return nil, err
	}

	working, abort := context.WithCancel(context.Background())
	stopping, stop := context.WithCancel(working)

	logger = logger.With(slog.String("component", "consumer"))

	r := &Router{
		Retries:      health.NewLoop("retries of waiting messages", health.Degraded, retryLimit, logger),
		cfg:          cfg,
		perTopic:     perTopic,
		pool:         pool,
		failed:       failures,
		dependencies: dependencies,
		postgres:     dependencies.Get(postgres.Dependency),
		relay:        relay,
		tracer:       tracer,
		logger:       logger,
		metrics:      newMetrics(registry),
		suspensions:  newSuspensions(),
		turns:        newTurns(cfg.ConcurrentBatches),
		decoders:     make(decoders),
		stalls:       stalls{latest: map[string]stall{}},
		due:          make(chan struct{}, 1),
		stopping:     stopping,
		stop:         stop,
		working:      working,
		abort:        abort,
	}
	r.outbox = newBatches(r, "", r.lookInOutbox)

	return r, nil
}

// Defaults sets the default settings of a topic. They override the settings of all
// topics, and consumer.per_topic overrides them.
func (r *Router) Defaults(t TopicConfig) {
	r.refuseAfterRun("defaults of " + t.Topic)

	own := r.cfg.with(t)

	for _, configured := range r.cfg.PerTopic {
		if configured.Topic == t.Topic {
			own = own.with(configured)
		}
	}

	r.perTopic[t.Topic] = own
}

// configOf returns the settings for a topic.
func (r *Router) configOf(topic string) Config {
	if c, ok := r.perTopic[topic]; ok {
		return c
	}

	return r.cfg
}

// Configured returns the topics with settings of their own.
func (r *Router) Configured() []string { return slices.Sorted(maps.Keys(r.perTopic)) }

// Routes returns the routing table.
func (r *Router) Routes() []*Route { return r.routes }

// routeOf returns the route of a consumer, or nil.
func (r *Router) routeOf(consumer string) *Route {
	for _, route := range r.routes {
		if route.Consumer == consumer {
			return route
		}
	}

	return nil
}

// Check returns the error with which a consumer would reject a payload before its
// handler sees it, and the payload's key.
func (r *Router) Check(consumer string, payload []byte) (key string, err error) {
	route := r.routeOf(consumer)
	if route == nil {
		return "", event.Errorf(event.Conflict, "consumer %s no longer exists", consumer)
	}

	return route.Check(payload)
}

// consumers returns the names of the consumers, in the order of the routing table.
func (r *Router) consumers() []string {
	return postgres.Column(r.routes, func(route *Route) string { return route.Consumer })
}

// Topics returns the topics that handlers consume, and the topics that they only
// publish.
func (r *Router) Topics() (consumed, publishedOnly []string) {
	for _, route := range r.routes {
		if !slices.Contains(consumed, route.Topic) {
			consumed = append(consumed, route.Topic)
		}
	}

	for _, route := range r.routes {
		for _, topic := range route.topics {
			if !slices.Contains(consumed, topic) && !slices.Contains(publishedOnly, topic) {
				publishedOnly = append(publishedOnly, topic)
			}
		}
	}

	return consumed, publishedOnly
}

// routesOf returns the routes of a topic.
func (r *Router) routesOf(topic string) []*Route {
	return slices.DeleteFunc(slices.Clone(r.routes), func(route *Route) bool { return route.Topic != topic })
}

// register adds a route.
func (r *Router) register(route Route) {
	r.refuseAfterRun("consumer " + route.Consumer)

	if other := r.routeOf(route.Consumer); other != nil {
		panic(fmt.Sprintf("consumer %s is registered twice, for %s and for %s", route.Consumer, other.Topic, route.Topic))
	}

	route.topics = postgres.Column(route.Publishes, event.Payload.Topic)
	r.routes = append(r.routes, &route)
}

// refuseAfterRun panics if the router is running, because it would ignore the
// registration.
func (r *Router) refuseAfterRun(what string) {
	if r.running.Load() {
		panic(what + " is registered after Run: register it in routes.go, before the service starts")
	}
}

// closeTimeout bounds how long Watermill waits for its handlers. The drain is over by
// then, so none should be left.
const closeTimeout = 5 * time.Second

// Source adapts a broker to the router.
type Source interface {
	// Down returns why the broker is not responding, or "".
	Down() string
	// Connect waits until the broker answers or ctx ends.
	Connect(ctx context.Context) error
	// Has reports whether the source carries a topic.
	Has(topic string) bool
	// Subscriber returns the subscriber of a topic, which delivers messages with one key in
	// order. key returns the key of a message that has none in its headers. Called
	// after Connect.
	Subscriber(topic string, key func(payload []byte) string) (message.Subscriber, error)
	// Subscribed is called once all topics of the source are subscribed.
	Subscribed()
}

// Direct is a message.Subscriber that calls a handler itself instead of sending messages
// through the channel of its subscription. The channel only signals the end of the
// subscription.
type Direct interface {
	// Handle sets the handler; called before Subscribe. The context of a message is that
	// of the subscription, and an error returns the message to its publisher.
	Handle(handle message.NoPublishHandlerFunc)
}

// Run consumes until ctx ends and then drains: it takes no further messages, waits
// for those in flight and closes the subscriptions. Each source starts as soon as it
// is connected, independently of the others. Run calls started once all sources are
// subscribed.
func (r *Router) Run(ctx context.Context, sources []Source, started func()) error {
	r.running.Store(true)

	consumed, _ := r.Topics()
	r.topics.enter(Connecting, consumed...)

	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: closeTimeout}, watermillLogger(r.logger))
	if err != nil {
		return fmt.Errorf("creating router: %w", err)
	}

	// The router gets a context that never ends, because cancelling it would cancel the
	// messages in flight. Close ends the router after the drain.
	result := make(chan error, 1)
	go func() { result <- router.Run(context.WithoutCancel(ctx)) }()

	// The same applies to the subscriptions.
	subscriptions, unsubscribe := context.WithCancel(line.Telling(context.WithoutCancel(ctx)))
	defer unsubscribe()

	err = r.serve(ctx, subscriptions, router, result, sources, started)

	unsubscribe()

	closeErr := router.Close()

	// If the subscriptions end first, Watermill leaves their subscribers and connections
	// open.
	for _, s := range r.subscribers {
		closeErr = errors.Join(closeErr, s.Close())
	}

	crashpoint.At(crashpoint.DrainUnsubscribed)

	if closeErr != nil {
		// No message is in flight any more. Only connections are left to close, and
		// they close anyway when the process exits.
		r.logger.Warn("could not close all subscriptions", slog.Any("error", closeErr))

		return err
	}

	return errors.Join(err, <-result)
}

// serve consumes until ctx ends or the router cannot continue, and then drains.
func (r *Router) serve(ctx, subscriptions context.Context, router *message.Router, result chan error, sources []Source, started func()) error {
	defer r.decoders.start()()

	// The group ends when ctx ends or one of its functions fails.
	group, running := errgroup.WithContext(ctx)
	seen := make(chan struct{})
	ended := make(chan string)

	group.Go(func() error {
		r.watch(running, seen)

		return nil
	})
	group.Go(func() error {
		err := r.subscribe(running, subscriptions, router, sources, seen, ended)

		switch {
		case err == nil:
			started()
		case running.Err() == nil:
			return fmt.Errorf("starting consumers: %w", err)
		}

		return nil
	})
	group.Go(func() error {
		select {
		case <-running.Done():
			return nil
		case err := <-result:
			result <- nil

			return errors.Join(errors.New("consumers ended unexpectedly"), err)
		case topic := <-ended:
			// Nothing would deliver the topic's messages any more. A restart
			// resubscribes.
			return fmt.Errorf("the subscription of topic %s ended unexpectedly", topic)
		}
	})

	// The drain waits for messages being retried.
	var retrying sync.WaitGroup

	retrying.Go(func() {
		select {
		case <-seen:
			r.retryWaiting(running)
		case <-running.Done():
		}
	})

	err := group.Wait()

	r.drain()
	retrying.Wait()

	return err
}

// subscribe connects all sources concurrently and subscribes to the topics of each as
// soon as it is connected. ctx bounds connecting; the subscriptions end with
// subscriptions. It takes no messages before seen is closed, because the paused
// consumers are unknown until then. If a subscription ends before ctx, its topic is
// sent to ended.
func (r *Router) subscribe(
	ctx, subscriptions context.Context, router *message.Router, sources []Source, seen <-chan struct{}, ended chan<- string,
) error {
	var (
		group    errgroup.Group
		starting sync.Mutex // serializes starting handlers in the router
	)

	for _, ready := range []<-chan struct{}{router.Running(), seen} {
		select {
		case <-ready:
		case <-ctx.Done():
			return ctx.Err()
		}
	}

	for _, source := range sources {
		group.Go(func() error {
			if err := source.Connect(ctx); err != nil {
				return err
			}

			starting.Lock()
			defer starting.Unlock()

			if err := r.subscribeTo(ctx, subscriptions, router, source, ended); err != nil {
				return err
			}

			source.Subscribed()

			return nil
		})
	}

	return group.Wait()
}

// subscribeTo subscribes to the topics of a source.
func (r *Router) subscribeTo(ctx, subscriptions context.Context, router *message.Router, source Source, ended chan<- string) error {
	handlers := map[string]*message.Handler{}

	consumed, _ := r.Topics()
	for _, topic := range consumed {
		if !source.Has(topic) {
			continue
		}

		routes := r.routesOf(topic)

		subscriber, err := source.Subscriber(topic, routes[0].key)
		if err != nil {
			return fmt.Errorf("connecting subscriber of %s: %w", topic, err)
		}

		r.subscribers = append(r.subscribers, subscriber)
		receive := r.receive(routes)
		if direct, ok := subscriber.(Direct); ok {
			direct.Handle(receive)
		}

		handlers[topic] = router.AddConsumerHandler(topic, topic, subscriber, receive)
	}

	if err := router.RunHandlers(subscriptions); err != nil {
		return err
	}

	for topic, handler := range handlers {
		r.topics.subscribed(topic, source)

		go func() {
			<-handler.Stopped()

			select {
			case ended <- topic:
			case <-ctx.Done():
			}
		}()
	}

	return nil
}

// drain closes the gate and waits for the messages in flight.
func (r *Router) drain() {
	r.stop()

	consumed, _ := r.Topics()
	r.topics.enter(Draining, consumed...)

	done := r.gate.close()

	crashpoint.At(crashpoint.DrainBegan)

	select {
	case <-done:
	case <-time.After(r.cfg.DrainTimeout):
		r.logger.Warn("drain timed out with messages in flight; they will be redelivered")
	}

	r.abort()
	<-done

	crashpoint.At(crashpoint.DrainSettled)
}

func watermillLogger(logger *slog.Logger) watermill.LoggerAdapter {
	// Watermill also logs the errors that Router.report logs with more context.
	return telemetry.Watermill(logger, slog.LevelDebug)
}
