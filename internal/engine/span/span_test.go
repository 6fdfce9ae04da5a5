package span_test

import (
	"context"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/google/uuid"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"pgregory.net/rapid"

	"github.com/millracehq/millrace/internal/engine/event"
	"github.com/millracehq/millrace/internal/engine/span"
)

func newTracer(sample float64) (*span.Tracer, *tracetest.SpanRecorder) {
	recorder := tracetest.NewSpanRecorder()

	return span.New(sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(recorder), sdktrace.WithIDGenerator(span.IDs{})), sample), recorder
}

var placed = span.Delivery{Consumer: "fulfilment.place", Topic: "orders.created", Origin: "kafka:orders.created/3@42", Bytes: 100}

// nothing is a publisher that confirms everything.
type nothing struct{}

func (nothing) Publish(string, ...*message.Message) error { return nil }

func (nothing) Close() error { return nil }

// An untraced message costs no memory, either on its way in or on its way out.
func TestAnUntracedMessageCostsNothing(t *testing.T) { //nolint:paralleltest // counts allocations of the process
	id := event.NewID()
	tracer, recorder := newTracer(0)

	for name, traceParent := range map[string]string{
		"without a trace":          "",
		"its producer has decided": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
	} {
		meta := event.Meta{ID: id, Correlation: id, Trace: traceParent}

		msg := message.NewMessage(id.String(), nil)
		msg.Metadata[event.HeaderCorrelation], msg.Metadata[event.HeaderTraceParent] = id.String(), traceParent
		publisher, messages := tracer.Publisher("kafka", nothing{}), []*message.Message{msg}

		got := testing.AllocsPerRun(1000, func() {
			delivery := tracer.Deliver(meta, placed)
			delivery.Identify(&meta)

			ctx, effect := delivery.Effect(context.Background(), "fulfilment.charge")
			_ = ctx

			effect.End("", "", "")
			delivery.End("applied", "", "")
		})
		if got != 0 {
			t.Errorf("%s: a delivery allocates %v times", name, got)
		}

		// The one allocation is the list of messages for the inner publisher.
		if got = testing.AllocsPerRun(1000, func() { _ = publisher.Publish("orders.created", messages...) }); got > 1 {
			t.Errorf("%s: publishing allocates %v times", name, got)
		}
	}

	if n := len(recorder.Started()); n != 0 {
		t.Errorf("%d spans were started", n)
	}
}

// All replicas and hops make the same decision about a conversation. The traced share is
// close to the sample, whatever the version of the IDs.
func TestTheSampleDependsOnTheConversationAlone(t *testing.T) {
	t.Parallel()

	const n = 20_000

	for name, newID := range map[string]func() uuid.UUID{
		"version 7": event.NewID, "version 4": uuid.New,
		"version 5": func() uuid.UUID { return event.ForeignID("shop", uuid.NewString()) },
	} {
		one, recorder := newTracer(0.25)
		two, others := newTracer(0.25)

		for range n {
			id := newID()
			one.Deliver(event.Meta{ID: event.NewID(), Correlation: id}, placed).End("", "", "")
			two.Deliver(event.Meta{ID: event.NewID(), Correlation: id}, placed).End("", "", "")
		}

		spans := recorder.Ended()
		if len(spans) < n/5 || len(spans) > n*3/10 || len(others.Ended()) != len(spans) {
			t.Errorf("%s: %d and %d of %d are traced, expected about a quarter", name, len(spans), len(others.Ended()), n)
		}

		for i, s := range spans {
			if s.SpanContext().TraceID() != others.Ended()[i].SpanContext().TraceID() {
				t.Fatal("two replicas give a conversation different traces")
			}
		}
	}
}

// Whatever context a producer sends, nothing fails, and a valid trace continues.
func TestAnyContextOfAProducerIsTaken(t *testing.T) {
	t.Parallel()

	tracer, recorder := newTracer(1)

	rapid.Check(t, func(t *rapid.T) {
		recorder.Reset()

		id := event.NewID()
		parent := rapid.OneOf(rapid.String(), rapid.StringMatching(`[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}`)).Draw(t, "traceparent")
		meta := event.MetaOf(id, event.Headers{event.HeaderTraceParent: parent, event.HeaderTraceState: rapid.String().Draw(t, "tracestate")})

		s := tracer.Deliver(meta, placed)
		if s == nil {
			return // the producer decided against tracing
		}

		s.Identify(&meta)
		s.End("", "", "")

		got := recorder.Ended()[0]
		if valid := got.Parent().IsValid(); valid && got.Parent().TraceID().String() != parent[3:35] || !valid && got.SpanContext().TraceID() != trace.TraceID(id) {
			t.Fatalf("traceparent %q gave trace %s", parent, got.SpanContext().TraceID())
		}

		if event.MetaOf(id, event.Headers{event.HeaderTraceParent: meta.Trace}).Trace == "" {
			t.Fatalf("sends %q", meta.Trace)
		}
	})
}

func BenchmarkDeliver(b *testing.B) {
	id := event.NewID()
	meta := event.Meta{ID: id, Correlation: id}

	for name, sample := range map[string]float64{"not traced": 0, "traced": 1} {
		b.Run(name, func(b *testing.B) {
			tracer := span.New(sdktrace.NewTracerProvider(sdktrace.WithIDGenerator(span.IDs{})), sample)

			for b.Loop() {
				meta := meta
				s := tracer.Deliver(meta, placed)
				s.Identify(&meta)
				s.End("applied", "", "")
			}
		})
	}
}
