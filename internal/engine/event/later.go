package event

import (
	"net/http"
	"strconv"
	"time"
)

// maxRetryAfter caps the delay that another system may ask for.
const maxRetryAfter = time.Hour

// RetryAfter parses a Retry-After header, in seconds or as a date (RFC 9110, section
// 10.2.3), for use with Later. It returns at most an hour, and 0 if the value is
// missing or invalid.
func RetryAfter(value string) time.Duration {
	if seconds, err := strconv.Atoi(value); err == nil {
		return max(0, min(time.Duration(seconds)*time.Second, maxRetryAfter))
	}

	if at, err := http.ParseTime(value); err == nil {
		return max(0, min(time.Until(at), maxRetryAfter))
	}

	return 0
}
