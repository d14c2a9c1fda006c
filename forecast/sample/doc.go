// Package sample makes signals out of few and cheap observations: shares and
// dirty rates of a guest's memory from a random sample of its pages, rates from
// counters, lifetimes of sessions from looks at those that are open, and what a
// link is usually like from single measurements.
//
// Time, randomness and the memory are arguments. What is estimated is unbiased, or
// the comment says in which direction it is not; what cannot be estimated is left
// unknown.
//
// What it leaves to others: reading the memory and counters (drivers), when to
// look (agents), keeping what was seen (the server).
package sample
