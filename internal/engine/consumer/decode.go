package consumer

import "runtime"

// decoders decode payloads on a few goroutines. Decoding needs a deeper stack than anything
// else that happens to a message before its batch runs. On the goroutine of each message, the
// stack would have to grow for it each time, and stay that large until the message is applied.
type decoders chan decoding

// decoding is one payload to decode.
type decoding struct {
	delivery *delivery
	// done receives exactly one value: nil once the payload has been decoded.
	done chan error
}

// start starts a decoder for each CPU and returns what ends them.
func (d decoders) start() (stop func()) {
	for range runtime.GOMAXPROCS(0) {
		go func() {
			for next := range d {
				_, err := protect(func() (struct{}, error) { return struct{}{}, next.delivery.route.open(next.delivery) })
				next.done <- err
			}
		}()
	}

	return func() { close(d) }
}

// decode decodes the payload of a delivery. A decoder must be running.
func (d decoders) decode(of *delivery) error {
	done := make(chan error, 1)
	d <- decoding{delivery: of, done: done}

	return <-done
}
