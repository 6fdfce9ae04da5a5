package app_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/propagation"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	otlp "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"

	"github.com/millracehq/millrace/internal/config"
	"github.com/millracehq/millrace/internal/engine/broker"
	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/postgres"
	"github.com/millracehq/millrace/internal/telemetry"
	"github.com/millracehq/millrace/internal/test/apptest"
	"github.com/millracehq/millrace/internal/test/brokertest"
	"github.com/millracehq/millrace/internal/test/pgtest"
)

// receiver is a collector that accepts traces as OTLP over HTTP.
type receiver struct {
	*httptest.Server

	mu    sync.Mutex
	spans []*otlp.Span
}

func newReceiver(t *testing.T) *receiver {
	t.Helper()

	r := &receiver{}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)

	return r
}

// ServeHTTP implements http.Handler.
func (r *receiver) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	var export collector.ExportTraceServiceRequest

	body, err := io.ReadAll(request.Body)
	if err != nil || request.URL.Path != "/v1/traces" || proto.Unmarshal(body, &export) != nil {
		w.WriteHeader(http.StatusBadRequest)

		return
	}

	r.mu.Lock()
	defer r.mu.Unlock()

	for _, resource := range export.GetResourceSpans() {
		for _, scope := range resource.GetScopeSpans() {
			r.spans = append(r.spans, scope.GetSpans()...)
		}
	}

	w.Header().Set("Content-Type", "application/x-protobuf") // an empty body means complete success
}

// endpoint configures a service to export to the receiver.
func (r *receiver) endpoint(c *config.Config) { c.Traces.Endpoint = r.URL + "/v1/traces" }

// named returns the only span with the given name in a trace, or in any trace if traceID
// is empty.
func (r *receiver) named(t *testing.T, traceID, name string) *otlp.Span {
	t.Helper()

	r.mu.Lock()
	defer r.mu.Unlock()

	var found []*otlp.Span

	for _, s := range r.spans {
		if s.GetName() == name && (traceID == "" || hex.EncodeToString(s.GetTraceId()) == traceID) {
			found = append(found, s)
		}
	}

	if len(found) != 1 {
		t.Fatalf("trace %s has %d spans %q, expected 1:\n%s", traceID, len(found), name, r.list())
	}

	return found[0]
}

func (r *receiver) list() string {
	var lines []string
	for _, s := range r.spans {
		lines = append(lines, fmt.Sprintf("%x %s", s.GetTraceId(), s.GetName()))
	}

	return strings.Join(lines, "\n")
}

// attribute returns an attribute of a span as text.
func attribute(s *otlp.Span, name string) string {
	for _, a := range s.GetAttributes() {
		if a.GetKey() == name {
			if text := a.GetValue().GetStringValue(); text != "" {
				return text
			}

			return fmt.Sprint(a.GetValue().GetIntValue())
		}
	}

	return ""
}

func duration(s *otlp.Span) time.Duration {
	return time.Duration(s.GetEndTimeUnixNano() - s.GetStartTimeUnixNano()) //nolint:gosec // a few seconds
}

// producerSpan exports a producer's span and returns its trace and its context.
func producerSpan(t *testing.T, r *receiver) (traceID string, carrier propagation.MapCarrier) {
	t.Helper()

	exporter, err := otlptracehttp.New(t.Context(), otlptracehttp.WithEndpointURL(r.URL+"/v1/traces"))
	if err != nil {
		t.Fatal(err)
	}

	provider := sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter))

	state, err := trace.ParseTraceState("shop=eu")
	if err != nil {
		t.Fatal(err)
	}

	ctx := trace.ContextWithRemoteSpanContext(context.Background(), trace.NewSpanContext(trace.SpanContextConfig{TraceState: state}))
	ctx, span := provider.Tracer("shop").Start(ctx, "checkout", trace.WithSpanKind(trace.SpanKindProducer))
	carrier = propagation.MapCarrier{}
	propagation.TraceContext{}.Inject(trace.ContextWithSpanContext(ctx, span.SpanContext().WithTraceState(state)), carrier)
	span.End()

	return span.SpanContext().TraceID().String(), carrier
}

// follow checks that an order's trace goes from its producer to orders.completed.
func follow(t *testing.T, r *receiver, system, traceID string) {
	t.Helper()

	span := func(name string) *otlp.Span { return r.named(t, traceID, name) }

	for _, child := range []struct{ name, parent string }{
		{"process orders.created", "checkout"},
		{"transaction fulfilment.place", "process orders.created"},
		{"outbox payments.requested", "process orders.created"},
		{"send payments.requested", "process orders.created"},
		{"process payments.requested", "send payments.requested"},
		{"perform fulfilment.charge", "process payments.requested"},
		{"transaction fulfilment.charge", "process payments.requested"},
		{"outbox orders.completed", "process payments.requested"},
		{"send orders.completed", "process payments.requested"},
		{"process orders.completed", "send orders.completed"},
		{"transaction fulfilment.complete", "process orders.completed"},
	} {
		if s := span(child.name); !bytes.Equal(s.GetParentSpanId(), span(child.parent).GetSpanId()) {
			t.Errorf("%s is not a child of %s", child.name, child.parent)
		}
	}

	for _, topic := range []string{"payments.requested", "orders.completed"} {
		waited, send := span("outbox "+topic), span("send "+topic)
		if duration(waited) <= 0 || waited.GetEndTimeUnixNano() != send.GetStartTimeUnixNano() {
			t.Errorf("the time of %s in the outbox is %s and ends at %d, the publish begins at %d",
				topic, duration(waited), waited.GetEndTimeUnixNano(), send.GetStartTimeUnixNano())
		}

		if send.GetKind() != otlp.Span_SPAN_KIND_PRODUCER || attribute(send, "messaging.operation.type") != "send" {
			t.Errorf("send %s: %v", topic, send)
		}
	}

	process := span("process orders.created")
	for name, want := range map[string]string{
		"messaging.system": system, "messaging.destination.name": "orders.created", "messaging.operation.type": "process",
		"millrace.consumer": "fulfilment.place", "millrace.outcome": "applied",
	} {
		if got := attribute(process, name); got != want || process.GetKind() != otlp.Span_SPAN_KIND_CONSUMER {
			t.Errorf("%s is %q, expected %q", name, got, want)
		}
	}

	if process.GetTraceState() != "shop=eu" || span("send orders.completed").GetTraceState() != "shop=eu" {
		t.Errorf("the trace state was lost: %v", process)
	}

	// The batch has a trace of its own. It and the message's transaction link to each other.
	batch, transaction := r.named(t, "", "batch fulfilment.place"), span("transaction fulfilment.place")
	if l := transaction.GetLinks(); len(l) != 1 || !bytes.Equal(l[0].GetSpanId(), batch.GetSpanId()) {
		t.Errorf("the transaction links to %v", l)
	}

	if l := batch.GetLinks(); len(l) != 1 || !bytes.Equal(l[0].GetSpanId(), process.GetSpanId()) || attribute(batch, "messaging.batch.message_count") != "1" {
		t.Errorf("the batch: %v", batch)
	}
}

func (r *receiver) waitForCompletion(t *testing.T, s *apptest.Service) {
	t.Helper()
	pgtest.Eventually(t, "orders.completed is applied", func() bool {
		return apptest.Value[bool](s, `SELECT EXISTS (SELECT FROM inbox WHERE consumer = 'fulfilment.complete')`)
	})
	s.Stop() // exports the last spans
}

func TestATraceGoesFromTheProducerToTheCompletedOrderOnKafka(t *testing.T) {
	t.Parallel()

	address := brokertest.Address(t, brokertest.Kafka)
	r := newReceiver(t)

	var cfg broker.Config

	s := apptest.Start(t, r.endpoint, func(c *config.Config) {
		c.Broker.Kind = broker.Kafka
		c.Broker.Kafka.Brokers = strings.Split(address, ",")
		c.Broker.Kafka.Group = brokertest.Topic()
		c.Broker.Kafka.Prefix = c.Broker.Kafka.Group + "."
		c.Broker.Kafka.Partitions = 2
		cfg = c.Broker
	})
	s.Seed()

	id, carrier := producerSpan(t, r)
	brokertest.ProduceKafka(t, cfg, cfg.Kafka.Prefix+"orders.created", brokertest.Foreign{
		Payload: []byte(guide(t, "orders.created")),
		Headers: map[string]any{"traceparent": carrier["traceparent"], "tracestate": carrier["tracestate"]},
	})
	r.waitForCompletion(t, s)
	follow(t, r, "kafka", id)

	if s := r.named(t, id, "process orders.created"); attribute(s, "messaging.destination.partition.id") == "" || attribute(s, "messaging.kafka.offset") != "0" {
		t.Errorf("got %v", s)
	}
}

// The producer follows the CloudEvents distributed tracing extension.
func TestATraceGoesFromTheProducerToTheCompletedOrderOnRabbitMQ(t *testing.T) {
	t.Parallel()

	server := brokertest.NewServer(t, "rabbitmq.sh")
	r := newReceiver(t)

	var cfg broker.Config

	s := apptest.Start(t, r.endpoint, func(c *config.Config) {
		c.Broker.Kind = broker.RabbitMQ
		c.Broker.RabbitMQ.URL = postgres.Secret("amqp://guest:guest@127.0.0.1:" + server.Port + "/")
		cfg = c.Broker
	})
	s.Seed()

	id, carrier := producerSpan(t, r)
	brokertest.ProduceRabbitMQ(t, cfg, "orders.created", brokertest.Foreign{
		Payload: []byte(guide(t, "orders.created")),
		Headers: map[string]any{"cloudEvents:traceparent": carrier["traceparent"], "cloudEvents:tracestate": carrier["tracestate"]},
	})
	r.waitForCompletion(t, s)
	follow(t, r, "rabbitmq", id)
}

// A conversation that has no trace from its producer gets one, with the conversation's
// ID.
func TestAConversationInTheSampleHasATrace(t *testing.T) {
	t.Parallel()

	r := newReceiver(t)
	s := apptest.Start(t, r.endpoint, func(c *config.Config) { c.Traces.Sample = 1 })
	s.Seed()

	id := s.Publish("orders.created", guide(t, "orders.created"))
	r.waitForCompletion(t, s)

	traceID := strings.ReplaceAll(id.String(), "-", "")
	root := r.named(t, traceID, "send orders.created")
	process := r.named(t, traceID, "process orders.created")

	if len(root.GetParentSpanId()) != 0 || !bytes.Equal(process.GetParentSpanId(), root.GetSpanId()) {
		t.Errorf("the root is %v, followed by %v", root, process)
	}

	if got := attribute(r.named(t, traceID, "process orders.completed"), "messaging.system"); got != "millrace" {
		t.Errorf("the embedded broker is %q", got)
	}
}

// A message that its producer does not trace has no spans here, and its trace context
// is passed on unchanged.
func TestTheProducerDecidesThatAMessageIsNotTraced(t *testing.T) {
	t.Parallel()

	const traceParent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"

	r := newReceiver(t)
	s := apptest.Start(t, r.endpoint, func(c *config.Config) { c.Traces.Sample = 1 })
	s.Seed()

	s.PublishMessage(event.Message{
		Topic: "orders.created", Key: "order_123", Payload: []byte(guide(t, "orders.created")),
		Headers: event.Headers{event.HeaderTraceParent: traceParent, event.HeaderTraceState: "shop=eu"},
	})

	headers := s.Messages("orders.completed", 1)[0].Headers
	r.waitForCompletion(t, s)

	if headers[event.HeaderTraceParent] != traceParent || headers[event.HeaderTraceState] != "shop=eu" {
		t.Errorf("orders.completed has %v", headers)
	}

	if spans := r.list(); spans != "" {
		t.Errorf("got spans:\n%s", spans)
	}
}

func TestTheLogAndTheSpanOfAStoppedMessageTellTheSame(t *testing.T) {
	t.Parallel()

	var log pgtest.Log

	r := newReceiver(t)
	s := apptest.NewWithLog(t, pgtest.URL(t), slog.New(slog.NewTextHandler(&log, nil)), r.endpoint, func(c *config.Config) { c.Traces.Sample = 1 })
	s.ExpectFailures()
	s.Run()

	id := s.PublishMessage(event.Message{Topic: "orders.created", Payload: []byte(`{"order":{}}`)})

	pgtest.Eventually(t, "the message is stopped", func() bool { return strings.Contains(log.String(), "message stopped") })
	s.Stop()

	span := r.named(t, strings.ReplaceAll(id.String(), "-", ""), "process orders.created")
	if span.GetStatus().GetCode() != otlp.Status_STATUS_CODE_ERROR || attribute(span, "millrace.outcome") != "stopped" || attribute(span, "error.type") != "invalid" {
		t.Errorf("got %v", span)
	}

	if want := fmt.Sprintf("trace_id=%x span_id=%x", span.GetTraceId(), span.GetSpanId()); !strings.Contains(log.String(), want) {
		t.Errorf("the log lacks %q:\n%s", want, log.String())
	}
}

// The service works without the collector, and reports only once that traces are not
// exported.
func TestACollectorThatIsAwayIsReportedOnce(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
	t.Setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "100")

	var log pgtest.Log

	s := apptest.NewWithLog(t, pgtest.URL(t), telemetry.NewLogger(telemetry.Config{Level: "info", Format: "text"}, &log), func(c *config.Config) {
		c.Traces.Endpoint, c.Traces.Sample = "http://127.0.0.1:"+pgtest.FreePort(t), 1
	})
	s.Run()
	s.Seed()
	s.Publish("orders.created", guide(t, "orders.created"))
	s.WaitForOrder("order_123", "completed")
	s.Stop()

	if got := strings.Count(log.String(), "traces cannot be exported"); got != 1 {
		t.Errorf("logged %d times:\n%s", got, log.String())
	}
}
