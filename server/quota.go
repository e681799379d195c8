// What an API key may use a minute: requests and tokens, for keys whose line in the key file says so.
//
// Both are token buckets that hold a minute's worth and fill steadily. A request takes one of the first when it comes. Of the
// second it takes what its answer may have when it is let in, and gives back what was not used when it has ended; its
// prompt, whose tokens nobody knows before, is charged then. So the balance may go below zero, by the prompts of what is
// in flight and one answer at most, and nothing of the key is let in until it is above again.

package server

import (
	"context"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// bucket fills at a steady rate up to a minute's worth. A nil bucket is without limit.
type bucket struct {
	mu      sync.Mutex
	most    float64 // a minute's worth
	balance float64
	at      time.Time // when balance was that
}

func newBucket(perMinute int64) *bucket {
	if perMinute <= 0 {
		return nil
	}
	return &bucket{most: float64(perMinute), balance: float64(perMinute), at: time.Now()}
}

// fill brings the balance up to now. The bucket is locked.
func (b *bucket) fill() {
	now := time.Now()
	b.balance = min(b.most, b.balance+b.most*now.Sub(b.at).Minutes())
	b.at = now
}

// take takes n when at least need is there; otherwise it takes nothing and says how long until it will be.
func (b *bucket) take(need, n float64) (wait time.Duration, ok bool) {
	if b == nil {
		return 0, true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	if b.balance < need {
		return b.until(need), false
	}
	b.balance -= n
	return 0, true
}

// until is the time after which the balance reaches a value. The bucket is locked.
func (b *bucket) until(value float64) time.Duration {
	return time.Duration(max(0, value-b.balance) / b.most * float64(time.Minute))
}

// give returns n, or charges it where n is negative.
func (b *bucket) give(n float64) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	b.balance = min(b.most, b.balance+n)
}

// report puts the balance into a reply's headers, as OpenAI names them.
func (b *bucket) report(h http.Header, what string) {
	if b == nil {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.fill()
	h.Set("X-Ratelimit-Limit-"+what, strconv.FormatInt(int64(b.most), 10))
	h.Set("X-Ratelimit-Remaining-"+what, strconv.FormatInt(int64(max(0, b.balance)), 10))
	h.Set("X-Ratelimit-Reset-"+what, b.until(b.most).Round(time.Millisecond).String())
}

// quota is what is left to a key. A nil quota is without limits.
type quota struct {
	requests, tokens *bucket
}

func newQuota(l keyLimits) *quota {
	q := &quota{requests: newBucket(l.requests), tokens: newBucket(l.tokens)}
	if q.requests == nil && q.tokens == nil {
		return nil
	}
	return q
}

// request takes one request, and refuses it as well where the key's tokens are used up: its body is then never read.
func (q *quota) request(h http.Header) error {
	if q == nil {
		return nil
	}
	defer func() {
		q.requests.report(h, "Requests")
		q.tokens.report(h, "Tokens")
	}()
	if wait, ok := q.tokens.take(1, 0); !ok {
		return q.tokens.refuse("tokens", wait)
	}
	if wait, ok := q.requests.take(1, 1); !ok {
		return q.requests.refuse("requests", wait)
	}
	return nil
}

// reserve takes the tokens of an answer.
func (q *quota) reserve(tokens int) error {
	if q == nil {
		return nil
	}
	if wait, ok := q.tokens.take(1, float64(tokens)); !ok {
		return q.tokens.refuse("tokens", wait)
	}
	return nil
}

// settle replaces what was reserved by what was used.
func (q *quota) settle(reserved, used int) {
	if q != nil {
		q.tokens.give(float64(reserved - used))
	}
}

func (b *bucket) refuse(what string, wait time.Duration) *Error {
	return &Error{Status: http.StatusTooManyRequests, Type: typeRateLimit, Code: codeRateLimit, RetryAfter: max(1, int(math.Ceil(wait.Seconds()))),
		Message: fmt.Sprintf("this API key may use %d %s a minute and has: try again later", int64(b.most), what)}
}

// defaultAnswerTokens is what an answer is reserved at where neither the request nor the model bounds it.
const defaultAnswerTokens = 512

// enter lets a request in: its key has tokens left and the model n places free. answer is how many tokens each of its
// answers may have, 0: the model's default. leave must be called once when enter succeeds, after the last token.
func (s *Server) enter(r *http.Request, m *served, n, answer int) (leave func(), err error) {
	x := exchangeOf(r)
	if answer == 0 {
		if answer = m.Manifest().Generation.MaxNewTokens; answer <= 0 {
			answer = defaultAnswerTokens
		}
	}
	return s.enterWith(x, m, n, n*answer)
}

// enterWith is enter for requests whose tokens are known differently.
func (s *Server) enterWith(x *exchange, m *served, n, reserved int) (leave func(), err error) {
	if err := x.quota.reserve(reserved); err != nil {
		return nil, err
	}
	left, err := m.gate.enter(x.key, n)
	if err != nil {
		x.quota.settle(reserved, 0)
		return nil, err
	}
	return func() {
		left()
		used := max(x.prompt+x.completion, int(x.made.Load())) // of an answer that was given up only its tokens are known
		x.quota.settle(reserved, used)
		if x.key != "" {
			s.metrics.keyTokens.WithLabelValues(x.key).Add(float64(used))
		}
	}, nil
}

// countToken counts a token for the request's key.
func countToken(ctx context.Context) {
	if x, ok := ctx.Value(exchangeKey{}).(*exchange); ok {
		x.made.Add(1)
	}
}
